#include "interrupt.hpp"

#include <csignal>

namespace glint::apps {
namespace {

std::atomic<bool> interrupted{false};
using Handler = void (*)(int);
Handler previous = SIG_DFL;

void on_sigint(int) {
  if (interrupted.exchange(true)) {  // the second Ctrl-C: the loop is stuck, give up
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
}

}  // namespace

Interrupt::Interrupt() {
  interrupted = false;
  previous = std::signal(SIGINT, on_sigint);
}

Interrupt::~Interrupt() { std::signal(SIGINT, previous == SIG_ERR ? SIG_DFL : previous); }

const std::atomic<bool>* Interrupt::flag() const { return &interrupted; }

void Interrupt::clear() { interrupted = false; }

}  // namespace glint::apps
