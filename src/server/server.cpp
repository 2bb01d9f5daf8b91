#include "server/server.hpp"

namespace glint::server {

Server::Server(const HttpOptions& http, ServiceOptions service) : service_(std::move(service)), http_(http, service_) {}

void Server::start(std::function<void(int)> on_signal) {
  http_.on_signal([this, on_signal = std::move(on_signal)](int number) {
    stop();
    if (on_signal) on_signal(number);
  });
  http_.start();
}

void Server::stop() {
  service_.drain();
  http_.stop();
}

}  // namespace glint::server
