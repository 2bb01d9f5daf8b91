#include "models/glm_4_7_flash/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/hash.hpp"
#include "base/json.hpp"
#include "base/thread_pool.hpp"
#include "models/glm_4_7_flash/calibrate.hpp"
#include "models/glm_4_7_flash/quantize_plan.hpp"
#include "weights/quantizer.hpp"
#include "weights/quantizer_files.hpp"

namespace glint {
namespace {

namespace fs = std::filesystem;

DType plain_dtype(WeightFormat f) {
  return f == WeightFormat::kF32 ? DType::kF32 : f == WeightFormat::kF16 ? DType::kF16 : DType::kBF16;
}

// INT8's rounding is far below what an evaluation sees, and statistics cost time. FP8 has three bits of mantissa: its
// error is four times INT8's and does show.
bool gains_by_calibration(const QuantSpec& spec) {
  return (weight_code_bits(spec.format) == 4 || spec.format == WeightFormat::kF8E4M3) && spec.group_rows == 1;
}

// One tensor of the model and what becomes of it.
struct Item {
  ModelTensor tensor;
  std::optional<QuantSpec> spec;   // none: kept
  std::vector<TensorInfo> stored;  // in the output
  std::uint64_t input_bytes = 0;

  std::uint64_t output_bytes() const {
    std::uint64_t n = 0;
    for (const TensorInfo& t : stored) n += static_cast<std::uint64_t>(t.shape.elements()) * dtype_bytes(t.dtype);
    return n;
  }
};

// Whole layers, so that a resumed calibration starts between two layers.
struct Shard {
  std::size_t begin = 0;  // items
  std::size_t end = 0;
  std::string file;
  std::uint64_t bytes = 0;
};

class Job {
 public:
  Job(const QuantizeJob& job, Ops& ops, const LoadProgress& progress)
      : job_(job), ops_(ops), progress_(progress), pool_(job.threads), partial_(job.output_dir + ".partial") {}

  QuantizeReport run() {
    if (fs::exists(job_.output_dir)) {
      throw Error({.what = job_.output_dir, .found = "something there already", .expected = "a new name"});
    }
    checkpoint_ = std::make_shared<const Checkpoint>(job_.input_dir);
    model_ = load_weights(checkpoint_, ops_);
    plan();
    open_partial();
    checkpoint_->drop_pages();  // a page of every tensor was looked at, with its neighbours
    if (job_.method == QuantMethod::kGptq)
      calibrator_ = std::make_unique<Calibrator>(
          model_, ops_, CalibrationOptions{job_.calibration, job_.window_tokens, job_.background}, pool_);
    for (const Shard& shard : shards_) {
      if (is_finished(shard)) keep(shard);
      else make(shard);
    }
    write_index();
    write_config();
    copy_other_files();
    std::error_code ec;
    fs::remove(state_path(), ec);
    fs::rename(partial_, job_.output_dir, ec);
    if (ec) throw Error({.what = partial_, .found = "cannot be renamed: " + ec.message()});
    return report_;
  }

 private:
  std::string state_path() const { return partial_ + "/quantize.state.json"; }

  // ---- the plan ----------------------------------------------------------------------------------------------

  void plan() {
    std::int64_t layer = -2;
    for (const ModelTensor& t : list_tensors(model_)) {
      Item item{.tensor = t, .spec = recipe_spec(t)};
      if (t.weight != nullptr) {
        item.input_bytes = static_cast<std::uint64_t>(t.weight->bytes());
        if (item.spec) {
          check_storable(*item.spec, t.base(), t.weight->rows, t.weight->cols);
          item.stored = stored_tensors(*item.spec, t.base(), t.weight->rows, t.weight->cols);
        } else {
          item.stored = {{t.name(), plain_dtype(t.weight->format), {t.weight->rows, t.weight->cols}}};
        }
      } else {
        const Checkpoint::Tensor* stored = checkpoint_->find(t.name());
        if (stored == nullptr)
          throw Error({.what = job_.input_dir + ": tensor " + t.name(), .found = "no such tensor"});
        item.stored = {{t.name(), stored->entry->dtype, stored->entry->shape}};
        item.input_bytes = stored->entry->end - stored->entry->begin;
      }
      const std::uint64_t bytes = item.output_bytes();
      if (t.layer != layer) {
        layer = t.layer;
        if (shards_.empty() || shards_.back().bytes + layer_bytes_ > job_.shard_bytes)
          shards_.push_back({.begin = items_.size(), .end = items_.size()});
        layer_bytes_ = 0;  // grows to this layer's size, the guess for the next
      }
      items_.push_back(std::move(item));
      layer_bytes_ += bytes;
      shards_.back().bytes += bytes;
      shards_.back().end = items_.size();
      report_.output_bytes += bytes;
      report_.input_bytes += items_.back().input_bytes;
    }
    for (std::size_t i = 0; i < shards_.size(); ++i) {
      char name[64];
      std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards_.size());
      shards_[i].file = shards_.size() == 1 ? "model.safetensors" : name;
    }
    report_.shards = static_cast<std::int64_t>(shards_.size());
  }

  std::optional<QuantSpec> recipe_spec(const ModelTensor& t) const {
    return t.weight != nullptr ? job_.recipe.spec(*t.spec, t.layer, model_.config) : std::nullopt;
  }

  // ---- what an earlier run left ------------------------------------------------------------------------------

  // Two runs with the same fingerprint write the same bytes.
  std::string fingerprint() const {
    std::string s = "1;" + job_.recipe.text() + ";" + std::to_string(static_cast<int>(job_.method)) + ";" +
                    std::to_string(job_.window_tokens) + ";" + std::to_string(job_.background) + ";" +
                    std::to_string(job_.damping) + ";" + std::to_string(job_.shard_bytes) + ";" +
                    std::to_string(hash64(job_.calibration.data(), job_.calibration.size() * sizeof(std::int32_t)));
    for (const Checkpoint::Tensor& t : checkpoint_->tensors()) {
      const ConstView v = t.view();
      // Names, places and the first bytes: cheap, and different for another model of the same shape.
      s += t.entry->name + std::to_string(t.entry->begin) + ":" +
           std::to_string(hash64(v.data, std::min<std::size_t>(v.bytes(), 256)));
    }
    return std::to_string(hash64(s.data(), s.size()));
  }

  void open_partial() {
    const std::string mine = fingerprint();
    if (fs::exists(partial_)) {
      if (!job_.resume) {
        throw Error({.what = partial_,
                     .found = "an unfinished run",
                     .hint = "--resume goes on with it; delete the folder to start again"});
      }
      read_state(mine);
    }
    std::error_code ec;
    fs::create_directories(partial_, ec);
    if (ec) throw Error({.what = partial_, .found = "cannot be created: " + ec.message()});
    state_["job"] = mine;
    if (!state_.contains("shards")) state_["shards"] = json::object();
    std::uint64_t needed = std::uint64_t{1} << 20;
    for (const Shard& s : shards_) needed += is_finished(s) ? 0 : s.bytes;
    const fs::space_info space = fs::space(partial_, ec);
    if (!ec && space.available < needed) {
      throw Error({.what = partial_,
                   .found = std::to_string(space.available / 1'000'000) + " MB free on the disk",
                   .expected = std::to_string(needed / 1'000'000) + " MB for what is still to be written"});
    }
  }

  void read_state(const std::string& mine) {
    if (!fs::exists(state_path())) return;  // stopped before its first shard
    const json::value v = json::parse_file(state_path());
    const json::object* o = v.if_object();
    const json::value* job = o != nullptr ? o->if_contains("job") : nullptr;
    const json::value* shards = o != nullptr ? o->if_contains("shards") : nullptr;
    if (job == nullptr || shards == nullptr || !shards->is_object() || *job != json::value(mine)) {
      throw Error({.what = partial_,
                   .found = "an unfinished run of another job (model, recipe, calibration or options differ)",
                   .hint = "delete the folder, or give the options of that run"});
    }
    // A shard counts by its bytes, not because the note says so.
    json::object good;
    for (const auto& [file, hash] : shards->get_object()) {
      const std::string path = partial_ + "/" + std::string(file);
      if (fs::exists(path) && hash == json::value(hash_of(path))) good[file] = hash;
    }
    state_["shards"] = std::move(good);
  }

  static std::string hash_of(const std::string& path) {
    const FileHash h = hash_file(path);
    return std::to_string(h.hash) + ":" + std::to_string(h.bytes);
  }

  bool is_finished(const Shard& shard) const { return state_.at("shards").get_object().contains(shard.file); }

  void note_finished(const Shard& shard) {
    state_["shards"].get_object()[shard.file] = hash_of(partial_ + "/" + shard.file);
    write_file(state_path(), json::serialize(state_));
  }

  // ---- the work ----------------------------------------------------------------------------------------------

  // Calls f(first, last) for the items of each layer.
  template <typename F>
  void for_each_layer(const Shard& shard, const F& f) {
    for (std::size_t i = shard.begin; i < shard.end;) {
      std::size_t end = i;
      while (end < shard.end && items_[end].tensor.layer == items_[i].tensor.layer) ++end;
      f(i, end);
      i = end;
    }
  }

  bool calibrated(std::int64_t layer) const {
    return calibrator_ != nullptr && layer >= 0 && layer < model_.config.n_layers;
  }

  void make(const Shard& shard) {
    std::vector<TensorInfo> infos;
    for (std::size_t i = shard.begin; i < shard.end; ++i)
      infos.insert(infos.end(), items_[i].stored.begin(), items_[i].stored.end());
    SafetensorsWriter writer(partial_ + "/" + shard.file, infos, {{"format", "pt"}});
    for_each_layer(shard, [&](std::size_t first, std::size_t last) {
      const std::int64_t layer = items_[first].tensor.layer;
      if (calibrated(layer)) {
        stats_ = calibrator_->collect(layer, [&](std::string_view field) {
          return std::any_of(
              items_.begin() + static_cast<std::ptrdiff_t>(first), items_.begin() + static_cast<std::ptrdiff_t>(last),
              [&](const Item& i) { return i.tensor.spec->field == field && i.spec && gains_by_calibration(*i.spec); });
        });
        report_.starved_experts += stats_->starved();
        checkpoint_->drop_pages();  // the whole layer was read; now it comes back matrix by matrix
      }
      std::vector<QuantizedWeight> made;  // what the next layers' calibration runs on
      for (std::size_t i = first; i < last; ++i) write(items_[i], writer, calibrated(layer) ? &made : nullptr);
      stats_.reset();
      if (calibrated(layer)) calibrator_->advance(layer);
      checkpoint_->drop_pages();  // vectors, what the next layer's run needed, and neighbours of what was read
    });
    writer.finish();
    note_finished(shard);
  }

  // The tensors of a finished shard: only calibration looks at them again.
  void keep(const Shard& shard) {
    ++report_.shards_kept;
    const auto file = std::make_unique<SafetensorsFile>(partial_ + "/" + shard.file);
    for_each_layer(shard, [&](std::size_t first, std::size_t last) {
      const std::int64_t layer = items_[first].tensor.layer;
      std::vector<QuantizedWeight> kept;  // owns mins
      for (std::size_t i = first; i < last; ++i) {
        Item& item = items_[i];
        if (item.spec && calibrated(layer)) {
          Weight& w = *item.tensor.weight;
          w = kept.emplace_back(stored_weight(*file, *item.spec, item.tensor.base(), w.rows, w.cols)).w;
        }
        advance_progress(item);
      }
      if (!calibrated(layer)) return;
      calibrator_->advance(layer);
      checkpoint_->drop_pages();
      file->map().drop_pages();
    });
  }

  void write(Item& item, SafetensorsWriter& writer, std::vector<QuantizedWeight>* made) {
    const ModelTensor& t = item.tensor;
    QuantizedRole& role = report_.roles[static_cast<std::size_t>(t.spec->role)];
    if (t.weight == nullptr) {
      const ConstView v = checkpoint_->find(t.name())->view();
      writer.write(t.name(), v.data, v.bytes());
      role.params += v.shape.elements();
    } else if (item.spec) {
      const Weight source = *t.weight;
      role.params += source.rows * source.cols;
      const std::vector<float> values = finite_values(t);
      QuantizedWeight q = quantise(item, values);
      write_quantized(writer, *item.spec, t.base(), q);
      add_error(role, q, values);
      done_with(source);
      if (made != nullptr) *t.weight = made->emplace_back(std::move(q)).w;
    } else {
      write_kept(t, writer);
      role.params += t.weight->rows * t.weight->cols;
    }
    role.bytes += static_cast<std::int64_t>(item.output_bytes());
    const std::string format = item.spec ? item.spec->name() : std::string(dtype_name(item.stored[0].dtype));
    if (std::find(role.formats.begin(), role.formats.end(), format) == role.formats.end())
      role.formats.push_back(format);
    advance_progress(item);
  }

  std::vector<float> finite_values(const ModelTensor& t) {
    std::vector<float> values = weight_values(*t.weight, pool_);
    const auto bad = std::count_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
    if (bad > 0) {
      throw Error({.what = job_.input_dir + ": tensor " + t.name(),
                   .found = std::to_string(bad) + " values that are NaN or infinite",
                   .expected = "finite values"});
    }
    return values;
  }

  QuantizedWeight quantise(const Item& item, const std::vector<float>& values) {
    const ModelTensor& t = item.tensor;
    ScaleSearch search;
    if (job_.method == QuantMethod::kRtn) search.steps = 1;
    if (stats_ != nullptr && gains_by_calibration(*item.spec)) {
      if (const HessianFactor* f = stats_->factor(*t.spec, t.expert, job_.damping))
        return quantize_gptq(*item.spec, values.data(), t.weight->rows, t.weight->cols, *f, search, pool_);
    }
    return quantize_searched(*item.spec, values.data(), t.weight->rows, t.weight->cols, {.search = search}, pool_);
  }

  void write_kept(const ModelTensor& t, SafetensorsWriter& writer) {
    const Weight& w = *t.weight;
    if (!has_scales(w.format)) {
      writer.write(t.name(), w.data, static_cast<std::size_t>(w.bytes()));
      done_with(w);
      return;
    }
    const std::vector<float> values = weight_values(w, pool_);
    std::vector<BF16> out(values.size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = to_bf16(values[i]);
    writer.write(t.name(), out.data(), out.size() * sizeof(BF16));
    done_with(w);
  }

  // The machine gets the pages back, and they no longer count as this process's: both, since the kernel may keep what
  // it was asked to page out.
  void done_with(const Weight& w) const {
    const auto bytes = static_cast<std::size_t>(w.rows * w.row_bytes());
    release_pages(w.data, bytes);
    checkpoint_->drop_pages(w.data, bytes);
  }

  static void add_error(QuantizedRole& role, const QuantizedWeight& q, const std::vector<float>& values) {
    std::vector<float> row(static_cast<std::size_t>(q.w.cols));
    for (std::int64_t r = 0; r < q.w.rows; ++r) {
      decode_row(q.w, r, row.data());
      const float* v = values.data() + r * q.w.cols;
      double error = 0, sum = 0;
      for (std::size_t k = 0; k < row.size(); ++k) {
        error += static_cast<double>((v[k] - row[k]) * (v[k] - row[k]));
        sum += static_cast<double>(v[k] * v[k]);
      }
      role.squared_error += error;
      role.squared_sum += sum;
    }
  }

  void advance_progress(const Item& item) {
    done_bytes_ += item.input_bytes;
    if (progress_) progress_(done_bytes_, report_.input_bytes);
  }

  // ---- the other files ---------------------------------------------------------------------------------------

  void write_index() const {
    if (shards_.size() == 1) return;
    json::object map;
    for (const Shard& s : shards_) {
      for (std::size_t i = s.begin; i < s.end; ++i) {
        for (const TensorInfo& t : items_[i].stored) map[t.name] = s.file;
      }
    }
    const json::object index{{"metadata", {{"total_size", report_.output_bytes}}}, {"weight_map", std::move(map)}};
    write_file(partial_ + "/model.safetensors.index.json", json::dump_python(index) + "\n");
  }

  void write_config() const {
    json::value config = json::parse_file(job_.input_dir + "/config.json");
    json::object& o = config.as_object();
    o.erase("quantization_config");
    std::vector<ModelTensor> tensors;
    for (const Item& i : items_) tensors.push_back(i.tensor);
    const std::string q = describe_recipe(tensors, job_.recipe, model_.config);
    if (!q.empty()) o["quantization_config"] = json::parse_text(q, "quantization_config");
    write_file(partial_ + "/config.json", json::dump_python(config) + "\n");
  }

  // Tokenizer, chat template, licence …: everything small that is neither weights nor written here.
  void copy_other_files() const {
    for (const fs::directory_entry& e : fs::directory_iterator(job_.input_dir)) {
      const std::string name = e.path().filename().string();
      const std::string ext = e.path().extension().string();
      const bool text = ext == ".json" || ext == ".jinja" || ext == ".txt" || ext == ".md" || ext == ".model" ||
                        name.starts_with("LICENSE");
      if (!e.is_regular_file() || !text || name == "config.json" || name == "model.safetensors.index.json") continue;
      std::error_code ec;
      fs::copy_file(e.path(), fs::path(partial_) / name, fs::copy_options::overwrite_existing, ec);
      if (ec) throw Error({.what = partial_ + "/" + name, .found = "cannot be written: " + ec.message()});
    }
  }

  const QuantizeJob& job_;
  Ops& ops_;
  const LoadProgress& progress_;
  ThreadPool pool_;
  std::string partial_;
  ModelWeights model_;
  std::shared_ptr<const Checkpoint> checkpoint_;  // the model's own
  std::vector<Item> items_;
  std::vector<Shard> shards_;
  std::uint64_t layer_bytes_ = 0;
  json::object state_;
  std::unique_ptr<Calibrator> calibrator_;
  std::unique_ptr<LayerStats> stats_;
  std::uint64_t done_bytes_ = 0;
  QuantizeReport report_;
};

}  // namespace

QuantizeReport quantize_checkpoint(const QuantizeJob& job, Ops& ops, const LoadProgress& progress) {
  if (job.method == QuantMethod::kGptq && job.calibration.empty())
    throw Error({.what = "gptq", .found = "no calibration tokens", .expected = "a text to calibrate on"});
  return Job(job, ops, progress).run();
}

void quantize_in_memory(ModelWeights& model, const QuantRecipe& recipe, Ops& ops, const LoadProgress& progress) {
  struct Storage {
    std::shared_ptr<void> before;
    std::vector<Buffer> buffers;
  };
  auto storage = std::make_shared<Storage>();
  const bool host = !ops.name().starts_with("cuda");
  CHECK(host, "quantize_in_memory reads the weights: load them on the host first");
  std::vector<ModelTensor> tensors = list_tensors(model);
  std::uint64_t total = 0;
  for (const ModelTensor& t : tensors) total += t.weight != nullptr ? static_cast<std::uint64_t>(t.weight->bytes()) : 0;
  const bool shared_embed = model.mtp && model.mtp->embed.data == model.embed.data;
  const bool shared_head = model.mtp && model.mtp->head.data == model.lm_head.data;
  const bool tied = model.lm_head.data == model.embed.data;

  ThreadPool pool(0);
  std::uint64_t done = 0;
  for (const ModelTensor& t : tensors) {
    if (t.weight == nullptr) continue;
    const Weight source = *t.weight;
    const auto spec = recipe.spec(*t.spec, t.layer, model.config);
    // A kv_b that attention could not read in codes stays: the loader of quantised files would widen it as well.
    const bool stays = t.spec->field == "layers.kv_b" && spec && !ops.supports_absorbed(*spec);
    if (spec && !stays && !has_scales(source.format)) {
      if (!ops.supports(spec->format)) {
        throw Error({.what = "weights",
                     .found = spec->name() + " for " + t.name(),
                     .expected = "a format that the backend " + ops.name() + " reads"});
      }
      const std::vector<float> values = weight_values(source, pool);
      // Half the steps of a file's search: this happens at every start.
      QuantizedWeight q =
          quantize_searched(*spec, values.data(), source.rows, source.cols, {.search = {.steps = 8}}, pool);
      *t.weight = q.w;
      storage->buffers.push_back(std::move(q.codes));
      storage->buffers.push_back(std::move(q.scales));
      if (q.mins.data() != nullptr) storage->buffers.push_back(std::move(q.mins));
      release_pages(source.data, static_cast<std::size_t>(source.bytes()));
    }
    done += static_cast<std::uint64_t>(source.bytes());
    if (progress) progress(done, total);
  }
  if (tied) model.lm_head = model.embed;
  if (shared_embed) model.mtp->embed = model.embed;
  if (shared_head) model.mtp->head = model.lm_head;
  storage->before = std::move(model.storage);
  model.storage = std::move(storage);
}

}  // namespace glint
