#pragma once
// Ctrl-C as a flag: while an Interrupt lives, SIGINT sets the flag instead of ending the program; a second one, before
// the flag was cleared, ends it.

#include <atomic>

namespace glint::apps {

class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  const std::atomic<bool>* flag() const;
  bool happened() const { return *flag(); }
  void clear();
};

}  // namespace glint::apps
