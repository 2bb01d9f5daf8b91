#pragma once
// What the engine's options say about the cache directory.

#include <optional>

#include "cache/kv_disk.hpp"
#include "cache/store.hpp"
#include "engine/loaded_model.hpp"

namespace glint {

// nullopt: no directory was asked for. Throws Error when the backend cannot have one. The fingerprint covers the
// model's files and every option that changes what the cache holds, the instruction set included.
std::optional<KvDiskOptions> disk_options(const EngineOptions& options, const LoadedModel& model, const KvStore& store);

}  // namespace glint
