#pragma once
// The bundled model on any backend, for tests, and the golden file beside it. Tests run from the source root.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#ifdef GLINT_CUDA
#include "backends/cuda/cuda.hpp"
#endif
#include "backends/reference/reference.hpp"
#include "engine/probe.hpp"
#include "weights/safetensors.hpp"

namespace glint::testing {

inline constexpr const char* kTinyDir = "models/tiny";
inline constexpr std::array kPrompts = {"story", "wiki", "code", "chat", "think", "tool", "unicode", "one"};

// "reference", or "cpu:ISA".
inline std::unique_ptr<Ops> make_ops(const std::string& backend, int threads = 1) {
  if (backend == "reference") return make_reference_ops();
#ifdef GLINT_CUDA
  if (backend == "cuda") return make_cuda_ops({});
#endif
  return make_cpu_ops({.isa = backend.substr(4), .threads = threads});
}

inline std::vector<std::string> cpu_backends() {
  std::vector<std::string> names;
  for (const std::string& isa : cpu_isas()) names.push_back("cpu:" + isa);
  return names;
}

// "cuda" where this build and this machine have it. Its absence is said aloud.
inline std::vector<std::string> device_backends() {
#ifdef GLINT_CUDA
  std::string why;
  if (cuda_available(&why)) return {"cuda"};
  std::printf("  *** NOT TESTED: no usable CUDA device here (%s) ***\n", why.c_str());
#endif
  return {};
}

inline std::vector<std::string> all_backends() {
  std::vector<std::string> names = cpu_backends();
  names.insert(names.begin(), "reference");
  return names;
}

// For INSTANTIATE_TEST_SUITE_P: "cpu:avx2" → "cpu_avx2".
inline std::string test_name(std::string backend) {
  for (char& c : backend) {
    if (c == ':') c = '_';
  }
  return backend;
}

// Model and cache of one sequence at a time.
struct TinyModel {
  std::unique_ptr<Ops> ops;
  ModelWeights weights;
  std::unique_ptr<Runtime> runtime;

  struct Options {
    KvCodec codec = KvCodec::kF32;
    float latent_eps = 0;
    int threads = 1;
    std::int64_t max_rows = 512;
  };

  explicit TinyModel(std::unique_ptr<Ops> backend) : TinyModel(std::move(backend), Options{}) {}
  TinyModel(std::unique_ptr<Ops> backend, const Options& o)
      : ops(std::move(backend)), weights(load_weights(kTinyDir, *ops)) {
    runtime = std::make_unique<Runtime>(
        weights, *ops,
        RuntimeOptions{
            .model = {.max_rows = o.max_rows, .max_logits = 64, .max_context = 4096, .latent_eps = o.latent_eps},
            .codec = o.codec,
            .cache_tokens = 4096,
            .max_seqs = 16,
            .mtp = true});
  }

  // All logits [n, vocab] of a prompt.
  std::vector<float> logits(std::span<const std::int32_t> ids, std::int64_t chunk = 0) {
    std::vector<float> all;
    probe_logits(*runtime, ids, {.chunk_tokens = chunk},
                 [&](std::int64_t, std::span<float> row) { all.insert(all.end(), row.begin(), row.end()); });
    return all;
  }
};

inline SafetensorsFile& golden() {
  static SafetensorsFile file("tests/data/golden/golden.safetensors");
  return file;
}

inline std::span<const std::int32_t> golden_ids(const std::string& name) {
  const ConstView v = golden().get(name + ".ids");
  return {v.as<std::int32_t>(), static_cast<std::size_t>(v.shape[0])};
}

}  // namespace glint::testing
