// glint inspect: what a checkpoint holds, whether it is sound, and what it needs in memory.

#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <map>
#include <memory>
#include <set>

#include "backends/reference/reference.hpp"
#include "base/error.hpp"
#include "base/json.hpp"
#include "command.hpp"
#include "model_dir.hpp"
#include "models/glm_4_7_flash/memory_plan.hpp"
#include "models/glm_4_7_flash/model_weights.hpp"
#include "ops/kv_codec.hpp"
#include "progress.hpp"
#include "weights/checkpoint.hpp"
#include "weights/matrix_reader.hpp"

namespace glint::apps {
namespace {

struct InspectFlags {
  std::string model;
  std::int64_t context = 0;
  std::int64_t sequences = 1;
  std::string kv = "bf16";
  bool json = false;
  bool tensors = false;
  bool verify = false;
};

// What lies in the files, by the tensor table.
struct Contents {
  std::array<RoleSize, kRoles> roles;
  std::map<std::string, RoleSize> dtypes;
  std::map<std::string, RoleSize> schemes;  // how matrices are stored; tensors: matrices
  RoleSize total;
  RoleSize unknown;  // names that the model does not have: load_weights refuses them
  std::int64_t loaded_bytes = 0;
  bool mtp = false;
  bool mtp_embed = false;
  bool mtp_head = false;
  bool fused_experts = false;
};

std::int64_t bytes_of(const SafetensorsEntry& t) { return static_cast<std::int64_t>(t.end - t.begin); }

void count(RoleSize& size, const SafetensorsEntry& t) {
  ++size.tensors;
  size.params += t.shape.elements();
  size.bytes += bytes_of(t);
}

// What a tensor takes in memory on the host. Norms and routers are loaded as F32, kv_b as BF16 if it is quantised and
// not `absorbed` as it is, F8 without scales as BF16, FP8 scales of FP4 as F32; the rest as stored. `first`: the tensor
// that stands for a quantised matrix of several.
struct StoredAs {
  std::string scheme = "plain";
  bool absorbed = false;
  bool first = true;
};
std::int64_t loaded_bytes(const TensorSpec& spec, const SafetensorsEntry& t, const StoredAs& as, std::int64_t params) {
  if (spec.rank == 1) return t.shape.elements() * 4;
  if (spec.role == Role::kRouter) return as.first ? params * 4 : 0;
  const bool quantised = as.scheme != "plain";
  if (quantised && spec.field == "layers.kv_b" && !as.absorbed) return as.first ? params * 2 : 0;
  if (t.dtype != DType::kF8E4M3) return bytes_of(t);
  if (!quantised) return bytes_of(t) * 2;
  return as.scheme.ends_with("nvfp4") ? bytes_of(t) * 4 : bytes_of(t);
}

// Whether the host's attention reads this kv_b as it lies in the file: INT8, symmetric, a scale a row.
bool is_absorbed(const Checkpoint& checkpoint, const std::string& base, std::string_view scheme, std::int64_t rows) {
  if (scheme == "bitsandbytes int8") return true;
  const Checkpoint::Tensor* scales = checkpoint.find(base + ".weight_scale");
  return scheme == "compressed-tensors int8" && scales != nullptr && scales->entry->shape.elements() <= rows &&
         checkpoint.find(base + ".weight_zero_point") == nullptr;
}

// A quantised matrix is several tensors: its parameters count once, with the first.
void count_matrix(Contents& c, const Checkpoint& checkpoint, const TensorSpec& spec, const SafetensorsEntry& entry,
                  std::int64_t params, std::set<std::string>& seen) {
  const std::string base = matrix_base(entry.name);
  const bool first = seen.insert(base).second;
  const MatrixScheme* found = find_scheme(checkpoint, base);
  const std::string scheme(found == nullptr ? "incomplete" : found->name);
  const bool absorbed = spec.field == "layers.kv_b" && is_absorbed(checkpoint, base, scheme, params / kLatent);
  for (RoleSize* size : {&c.roles[static_cast<std::size_t>(spec.role)], &c.total, &c.schemes[scheme]}) {
    size->tensors += size == &c.schemes[scheme] && !first ? 0 : 1;
    size->params += first ? params : 0;
    size->bytes += bytes_of(entry);
  }
  c.loaded_bytes += loaded_bytes(spec, entry, {scheme, absorbed, first}, params);
}

Contents survey(const Checkpoint& checkpoint, const ModelConfig& config) {
  Contents c;
  std::set<std::string> seen;
  for (const Checkpoint::Tensor& t : checkpoint.tensors()) {
    const SafetensorsEntry& entry = *t.entry;
    count(c.dtypes[std::string(dtype_name(entry.dtype))], entry);
    const auto place = find_stored_place(entry.name, config);
    if (!place) {
      count(c.total, entry);
      if (!is_ignored_tensor(entry.name)) count(c.unknown, entry);
      continue;
    }
    const TensorSpec& spec = *place->spec;
    if (spec.rank >= 2) {
      count_matrix(c, checkpoint, spec, entry, spec.shape(config).elements(), seen);
    } else {
      count(c.total, entry);
      count(c.roles[static_cast<std::size_t>(spec.role)], entry);
      c.loaded_bytes += loaded_bytes(spec, entry, {}, 0);
    }
    c.mtp |= place->layer == config.n_layers;
    c.mtp_embed |= spec.field == "mtp.embed";
    c.mtp_head |= spec.field == "mtp.head";
    c.fused_experts |= spec.scope == Scope::kFused;
  }
  return c;
}

struct Report {
  std::string dir;
  const Checkpoint* checkpoint = nullptr;
  ModelConfig config;
  Contents contents;
  ModelSize size;
  MemoryPlan plan;
  std::int64_t context = 0;
  std::int64_t sequences = 1;
  std::string kv;
  bool verified = false;
};

// Loads everything with all checks, then looks for NaN and infinities in every tensor. Throws Error.
void verify(const std::string& dir, const Checkpoint& checkpoint, bool quiet) {
  const std::unique_ptr<Ops> ops = make_reference_ops();
  load_weights(dir, *ops);
  ProgressBar bar("verifying", Unit::kBytes, !quiet);
  std::uint64_t done = 0;
  for (const Checkpoint::Tensor& t : checkpoint.tensors()) {
    if (const std::uint64_t bad = count_non_finite(t.view()); bad > 0) {
      throw Error({.what = t.what(),
                   .found = fmt::format("{} of {} values NaN or infinite", bad, t.entry->shape.elements()),
                   .expected = "finite values"});
    }
    done += t.entry->end - t.entry->begin;
    bar.update(done, checkpoint.data_bytes());
  }
}

// ---- JSON ------------------------------------------------------------------------------------------------------

json::object size_json(const RoleSize& s) { return {{"tensors", s.tensors}, {"params", s.params}, {"bytes", s.bytes}}; }

// A float as the double of its shortest decimal: 1.8, not 1.7999999523162842.
double shortest(float f) { return std::stod(fmt::format("{}", f)); }

json::object config_json(const ModelConfig& c) {
  json::array eos;
  for (const std::int32_t id : c.eos_ids) eos.push_back(id);
  return {{"hidden", c.hidden},
          {"n_layers", c.n_layers},
          {"n_mtp_layers", c.n_mtp_layers},
          {"n_heads", c.n_heads},
          {"q_lora", c.q_lora},
          {"kv_lora", kLatent},
          {"nope", kNope},
          {"rope", kRope},
          {"value", kValue},
          {"dense_inner", c.dense_inner},
          {"expert_inner", c.expert_inner},
          {"n_experts", c.n_experts},
          {"n_shared_experts", c.n_shared_experts},
          {"top_k", c.top_k},
          {"first_dense_layers", c.first_dense_layers},
          {"norm_topk", c.norm_topk},
          {"routed_scale", shortest(c.routed_scale)},
          {"rms_eps", shortest(c.rms_eps)},
          {"rope_theta", shortest(c.rope_theta)},
          {"vocab", c.vocab},
          {"max_positions", c.max_positions},
          {"tie_embeddings", c.tie_embeddings},
          {"eos_ids", std::move(eos)},
          {"pad_id", c.pad_id},
          {"dtype", c.dtype}};
}

json::object report_json(const Report& r, bool tensors) {
  json::object roles, dtypes, schemes;
  for (std::size_t i = 0; i < kRoles; ++i) roles[role_name(static_cast<Role>(i))] = size_json(r.contents.roles[i]);
  for (const auto& [name, size] : r.contents.dtypes) dtypes[name] = size_json(size);
  for (const auto& [name, size] : r.contents.schemes) schemes[name] = size_json(size);
  json::object codecs;
  for (const KvCodec codec : kKvCodecs) codecs[kv_codec_name(codec)] = r.config.n_cache_layers() * kv_row_bytes(codec);
  json::array files;
  for (const SafetensorsFile& f : r.checkpoint->files()) files.push_back(json::value(f.path()));
  json::object out{
      {"model_dir", r.dir},
      {"config", config_json(r.config)},
      {"files", std::move(files)},
      {"params", r.contents.total.params},
      {"active_params", r.size.active_params},
      {"total", size_json(r.contents.total)},
      {"unknown", size_json(r.contents.unknown)},
      {"roles", std::move(roles)},
      {"dtypes", std::move(dtypes)},
      {"schemes", std::move(schemes)},
      {"mtp", {{"present", r.contents.mtp}, {"own_embed", r.contents.mtp_embed}, {"own_head", r.contents.mtp_head}}},
      {"experts", r.contents.fused_experts ? "fused" : "one tensor each"},
      {"verified", r.verified},
      {"memory",
       {{"context_tokens", r.context},
        {"sequences", r.sequences},
        {"kv", r.kv},
        {"weight_bytes", r.plan.weight_bytes},
        {"active_bytes", r.plan.active_bytes},
        {"cache_bytes_per_token", r.plan.cache_bytes_per_token},
        {"cache_bytes_per_token_by_format", std::move(codecs)},
        {"cache_bytes", r.plan.cache_bytes},
        {"workspace_bytes", r.plan.workspace_bytes},
        {"total_bytes", r.plan.total_bytes}}}};
  if (!tensors) return out;
  json::array list;
  for (const Checkpoint::Tensor& t : r.checkpoint->tensors()) {
    json::array shape;
    for (int d = 0; d < t.entry->shape.rank(); ++d) shape.push_back(t.entry->shape[d]);
    list.push_back({{"name", t.entry->name},
                    {"dtype", dtype_name(t.entry->dtype)},
                    {"shape", std::move(shape)},
                    {"file", t.file->path()},
                    {"begin", t.entry->begin},
                    {"end", t.entry->end}});
  }
  out["tensors"] = std::move(list);
  return out;
}

// ---- for people ------------------------------------------------------------------------------------------------

std::string millions(std::int64_t params) {
  const auto p = static_cast<double>(params);
  return p >= 1e9 ? fmt::format("{:.2f} B", p / 1e9) : fmt::format("{:.2f} M", p / 1e6);
}

void line(std::string_view name, const std::string& text) { fmt::print("{:<14}{}\n", name, text); }

std::string size_text(std::int64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

void print_config(const Report& r) {
  const ModelConfig& c = r.config;
  line("model", r.dir);
  line("parameters",
       fmt::format("{} in {} tensors, {} active a token (embedding and head not counted)",
                   millions(r.contents.total.params), r.contents.total.tensors, millions(r.size.active_params)));
  line("layers",
       fmt::format("{} = {} dense + {} MoE{}", c.n_layers, c.first_dense_layers, c.n_layers - c.first_dense_layers,
                   !r.contents.mtp                               ? "; no MTP layer"
                   : r.contents.mtp_embed || r.contents.mtp_head ? "; an MTP layer with its own embedding or head"
                                                                 : "; an MTP layer that shares embedding and head"));
  line("hidden", fmt::format("{}; dense MLP {}", c.hidden, c.dense_inner));
  line("experts", fmt::format("{} of width {}, {} a token + {} shared, scale {}", c.n_experts, c.expert_inner, c.top_k,
                              c.n_shared_experts, c.routed_scale));
  line("attention", fmt::format("MLA, {} heads of {}+{}, value {}, latent {}, q rank {}, rope theta {}", c.n_heads,
                                kNope, kRope, kValue, kLatent, c.q_lora, c.rope_theta));
  std::string eos;
  for (const std::int32_t id : c.eos_ids) eos += (eos.empty() ? "" : ", ") + std::to_string(id);
  line("vocabulary", fmt::format("{}; ends with {}", c.vocab, eos.empty() ? "no id" : eos));
  line("context", fmt::format("{} tokens at most", c.max_positions));
  const std::size_t n_files = r.checkpoint->files().size();
  line("files", fmt::format("{} safetensors file{}, {} of data, experts {}", n_files, n_files == 1 ? "" : "s",
                            size_text(r.contents.total.bytes), r.contents.fused_experts ? "fused" : "one by one"));
}

void print_table(std::string_view title, const std::vector<std::pair<std::string, RoleSize>>& rows) {
  fmt::print("\n{:<26}{:>9}{:>16}{:>12}{:>8}\n", title, "tensors", "parameters", "bytes", "share");
  std::int64_t total = 0;
  for (const auto& [name, size] : rows) total += size.bytes;
  for (const auto& [name, size] : rows) {
    if (size.tensors == 0) continue;
    fmt::print("{:<26}{:>9}{:>16}{:>12}{:>7.1f}%\n", name, size.tensors, size.params, size_text(size.bytes),
               total > 0 ? 100.0 * static_cast<double>(size.bytes) / static_cast<double>(total) : 0.0);
  }
}

void print_report(const Report& r, bool tensors) {
  print_config(r);
  std::vector<std::pair<std::string, RoleSize>> rows;
  for (std::size_t i = 0; i < kRoles; ++i) rows.emplace_back(role_name(static_cast<Role>(i)), r.contents.roles[i]);
  if (r.contents.unknown.tensors > 0) rows.emplace_back("unknown", r.contents.unknown);
  print_table("role", rows);
  print_table("dtype", {r.contents.dtypes.begin(), r.contents.dtypes.end()});
  print_table("matrices as", {r.contents.schemes.begin(), r.contents.schemes.end()});

  const double machine = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  fmt::print("\nmemory for {} sequence{} of {} tokens\n", r.sequences, r.sequences == 1 ? "" : "s", r.context);
  line("  weights", fmt::format("{} as loaded; a decoded token reads {}", size_text(r.plan.weight_bytes),
                                size_text(r.plan.active_bytes)));
  line("  cache",
       fmt::format("{} in {}, {} bytes a token", size_text(r.plan.cache_bytes), r.kv, r.plan.cache_bytes_per_token));
  std::string codecs;
  for (const KvCodec codec : kKvCodecs) {
    codecs += fmt::format("{}{} {}", codecs.empty() ? "" : ", ", kv_codec_name(codec),
                          r.config.n_cache_layers() * kv_row_bytes(codec));
  }
  line("", fmt::format("bytes a token: {}", codecs));
  line("  workspace", fmt::format("about {}", size_text(r.plan.workspace_bytes)));
  line("  together", fmt::format("{} of this machine's {}{}", size_text(r.plan.total_bytes), human_bytes(machine),
                                 static_cast<double>(r.plan.total_bytes) > machine ? ": does not fit" : ""));
  if (r.verified) fmt::print("\nverified: names, types and shapes fit, and all values are finite\n");
  if (!r.verified && r.contents.unknown.tensors > 0)
    fmt::print("\n{} tensors have names that the model does not have; it will not load\n", r.contents.unknown.tensors);
  if (!tensors) return;
  fmt::print("\n{:<64}{:<9}{:<22}{}\n", "tensor", "dtype", "shape", "bytes");
  for (const Checkpoint::Tensor& t : r.checkpoint->tensors()) {
    fmt::print("{:<64}{:<9}{:<22}{}\n", t.entry->name, dtype_name(t.entry->dtype), t.entry->shape.to_string(),
               t.entry->end - t.entry->begin);
  }
}

int inspect(const InspectFlags& flags) {
  Report r{.dir = resolve_model_dir(flags.model), .sequences = flags.sequences, .kv = flags.kv};
  r.config = load_config(r.dir);
  const Checkpoint checkpoint(r.dir);
  r.checkpoint = &checkpoint;
  r.contents = survey(checkpoint, r.config);
  r.config.n_mtp_layers = r.contents.mtp ? 1 : 0;
  r.size = model_size(r.config);
  r.context = flags.context > 0 ? flags.context : r.config.max_positions;
  if (r.context > r.config.max_positions) {
    throw Error({.what = "--context",
                 .found = std::to_string(r.context),
                 .expected = "at most " + std::to_string(r.config.max_positions) + ", the model's limit"});
  }
  if (flags.verify) {
    verify(r.dir, checkpoint, flags.json);
    r.verified = true;
  }
  r.plan = plan_memory(r.config, {.context_tokens = r.context,
                                  .n_sequences = r.sequences,
                                  .codec = *kv_codec_from_name(r.kv),
                                  .weight_bytes = r.contents.loaded_bytes});
  if (flags.json) fmt::print("{}\n", json::dump_python(report_json(r, flags.tensors)));
  else print_report(r, flags.tensors);
  return 0;
}

}  // namespace

void register_inspect(CLI::App& app, Run& run) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* c = app.add_subcommand("inspect", "Show a checkpoint: config, tensors, bytes, and a memory plan");
  c->add_option("-m,--model", flags->model, "Checkpoint directory (default: $GLINT_MODEL, else the bundled model)");
  c->add_option("--context", flags->context, "Tokens a sequence in the memory plan (default: the model's limit)")
      ->check(CLI::PositiveNumber);
  c->add_option("--sequences", flags->sequences, "Sequences at a time in the memory plan")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--kv", flags->kv, "Cache format: int16, f16, bf16, fp8, int8, int4 or f32")
      ->check(CLI::IsMember({"int16", "f16", "bf16", "fp8", "int8", "int4", "f32"}))
      ->capture_default_str();
  c->add_flag("--tensors", flags->tensors, "List every tensor");
  c->add_flag("--verify", flags->verify, "Load it with all checks and look for NaN in every tensor (reads all of it)");
  c->add_flag("--json", flags->json, "One JSON object for machines");
  c->footer("glint inspect --context 32768\nglint inspect -m ~/GLM-4.7-Flash --verify");
  c->callback([flags, &run] { run = [flags] { return inspect(*flags); }; });
}

}  // namespace glint::apps
