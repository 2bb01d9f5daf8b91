#include "models/glm_4_7_flash/quantize_plan.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/thread_pool.hpp"
#include "weights/quantizer_files.hpp"

namespace glint {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";

void add_scope(std::vector<ModelTensor>& out, Scope scope, const BindTarget& target, std::int64_t layer,
               std::int64_t expert = -1) {
  for (const TensorSpec& spec : tensor_table()) {
    if (spec.scope != scope) continue;
    ModelTensor t{.spec = &spec, .layer = layer, .expert = expert};
    const Slot slot = spec.bind(target);
    if (auto* const* w = std::get_if<Weight*>(&slot)) t.weight = *w;
    else t.view = std::get<ConstView*>(slot);
    if (t.weight != nullptr ? bool(*t.weight) : bool(*t.view)) out.push_back(t);
  }
}

void add_layer(std::vector<ModelTensor>& out, LayerWeights& layer, std::int64_t index) {
  add_scope(out, Scope::kLayer, {.layer = &layer}, index);
  add_scope(out, layer.dense.gate ? Scope::kDense : Scope::kMoe, {.layer = &layer}, index);
  for (std::size_t e = 0; e < layer.experts.size(); ++e)
    add_scope(out, Scope::kExpert, {.expert = &layer.experts[e]}, index, static_cast<std::int64_t>(e));
}

std::string escape(std::string_view name) {
  std::string s;
  for (const char c : name) s += c == '.' ? std::string("\\.") : std::string(1, c);
  return s;
}

// The modules of one table entry in some layers, as compressed-tensors names them.
std::string target_of(const TensorSpec& spec, const std::set<std::int64_t>& layers, bool every_layer) {
  std::string_view name = spec.hf_name;
  if (name.ends_with(kWeightSuffix)) name.remove_suffix(kWeightSuffix.size());
  if (spec.scope == Scope::kModel) return std::string(name);
  std::string which = "\\d+";
  if (!every_layer) {
    which.clear();
    for (const std::int64_t l : layers) which += (which.empty() ? "(?:" : "|") + std::to_string(l);
    which += ")";
  }
  std::string s = "re:^model\\.layers\\." + which + "\\.";
  if (spec.scope == Scope::kExpert) s += "mlp\\.experts\\.\\d+\\.";
  return s + escape(name) + "$";
}

}  // namespace

std::string ModelTensor::base() const {
  std::string n = name();
  if (n.ends_with(kWeightSuffix)) n.resize(n.size() - kWeightSuffix.size());
  return n;
}

std::vector<ModelTensor> list_tensors(ModelWeights& model) {
  std::vector<ModelTensor> out;
  add_scope(out, Scope::kModel, {.model = &model}, -1);
  if (model.lm_head.data == model.embed.data) std::erase_if(out, [](auto& t) { return t.spec->role == Role::kHead; });
  for (std::size_t l = 0; l < model.layers.size(); ++l) add_layer(out, model.layers[l], static_cast<std::int64_t>(l));
  if (!model.mtp) return out;
  const std::size_t begin = out.size();
  add_scope(out, Scope::kMtp, {.mtp = model.mtp.get()}, model.config.n_layers);
  out.erase(std::remove_if(out.begin() + static_cast<std::ptrdiff_t>(begin), out.end(),
                           [&](const ModelTensor& t) {
                             return t.weight != nullptr &&
                                    (t.weight->data == model.embed.data || t.weight->data == model.lm_head.data);
                           }),
            out.end());
  add_layer(out, model.mtp->block, model.config.n_layers);
  return out;
}

std::vector<float> weight_values(const Weight& w, ThreadPool& pool) {
  std::vector<float> values(static_cast<std::size_t>(w.rows * w.cols));
  constexpr std::int64_t kRows = 32;
  pool.parallel_for((w.rows + kRows - 1) / kRows, [&](std::int64_t item, int) {
    for (std::int64_t r = item * kRows; r < std::min(w.rows, (item + 1) * kRows); ++r)
      decode_row(w, r, values.data() + r * w.cols);
  });
  return values;
}

void release_pages(const void* data, std::size_t bytes) {
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kPage * kPage;
  // PAGEOUT, not DONTNEED, which would zero memory that is not a mapped file. Unknown to old kernels: no harm.
#ifdef MADV_PAGEOUT
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT);
#endif
}

std::string describe_recipe(const std::vector<ModelTensor>& tensors, const QuantRecipe& recipe,
                            const ModelConfig& config) {
  // The layers of each table entry, apart by spec ("" for kept).
  std::map<const TensorSpec*, std::map<std::string, std::set<std::int64_t>>> layers;
  std::map<std::string, QuantGroup> groups;
  for (const ModelTensor& t : tensors) {
    if (t.spec->rank != 2) continue;
    const auto spec = recipe.spec(*t.spec, t.layer, config);
    const std::string name = spec ? spec->name() : "";
    layers[t.spec][name].insert(t.layer);
    if (spec) groups[name].spec = *spec;
  }
  if (groups.empty()) return "";
  const bool nf4 = groups.begin()->second.spec.format == WeightFormat::kNF4;
  std::vector<std::string> ignored;
  for (const auto& [spec, by_name] : layers) {
    for (const auto& [name, where] : by_name) {
      if (!name.empty()) groups[name].targets.push_back(target_of(*spec, where, by_name.size() == 1));
      else if (!nf4) ignored.push_back(target_of(*spec, where, by_name.size() == 1));
    }
  }
  // bitsandbytes knows names only.
  for (const ModelTensor& t : tensors) {
    if (nf4 && t.spec->rank == 2 && !recipe.spec(*t.spec, t.layer, config)) ignored.push_back(t.base());
  }
  std::vector<QuantGroup> list;
  for (auto& [name, group] : groups) list.push_back(std::move(group));
  return quantization_config(list, ignored);
}

}  // namespace glint
