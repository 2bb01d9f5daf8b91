#include "engine/api_json.hpp"

#include <concepts>
#include <type_traits>

#include "base/error.hpp"
#include "base/json.hpp"

namespace glint {
namespace {

// Reads the fields of one object one by one and in the end refuses those that nobody asked for.
class Fields {
 public:
  Fields(const json::value& v, std::string where) : where_(std::move(where)) {
    if (!v.is_object()) throw Error({.what = where_, .found = json::dump_python(v), .expected = "an object"});
    object_ = &v.get_object();
  }

  template <typename T>
  void read(std::string_view name, T& out) {
    const json::value* v = object_->if_contains(name);
    names_ += (names_.empty() ? "" : ", ") + std::string(name);
    if (v == nullptr) return;
    ++met_;
    if (!v->is_null()) convert(name, *v, out);
  }

  // A nested object; nullptr when absent or null.
  const json::value* nested(std::string_view name) {
    names_ += (names_.empty() ? "" : ", ") + std::string(name);
    const json::value* v = object_->if_contains(name);
    if (v == nullptr) return nullptr;
    ++met_;
    return v->is_null() ? nullptr : v;
  }

  // Every read() is done: what is left in the object is unknown.
  void finish() const {
    if (met_ == object_->size()) return;
    for (const auto& member : *object_) {
      const std::string list = ", " + names_ + ", ";
      if (list.find(", " + std::string(member.key()) + ", ") == std::string::npos) {
        throw Error(
            {.what = where_, .found = "unknown field \"" + std::string(member.key()) + "\"", .expected = names_});
      }
    }
  }

 private:
  [[noreturn]] void wrong(std::string_view name, const json::value& v, const char* expected) const {
    std::string found = json::dump_python(v);
    if (found.size() > 80) found = found.substr(0, 77) + "...";
    throw Error({.what = where_ + " field \"" + std::string(name) + "\"", .found = found, .expected = expected});
  }

  void convert(std::string_view name, const json::value& v, bool& out) const {
    if (!v.is_bool()) wrong(name, v, "true or false");
    out = v.get_bool();
  }
  void convert(std::string_view name, const json::value& v, std::string& out) const {
    if (!v.is_string()) wrong(name, v, "a string");
    out.assign(v.get_string().data(), v.get_string().size());
  }
  template <std::floating_point T>
  void convert(std::string_view name, const json::value& v, T& out) const {
    if (!v.is_number()) wrong(name, v, "a number");
    out = static_cast<T>(v.to_number<double>());
  }
  template <std::integral T>
  void convert(std::string_view name, const json::value& v, T& out) const {
    boost::system::error_code failed;
    const T number = v.is_number() ? v.to_number<T>(failed) : T{};
    if (!v.is_number() || failed) {
      wrong(name, v, std::is_unsigned_v<T> ? "a whole number from 0 to 2^64 - 1" : "a whole number in range");
    }
    out = number;
  }
  template <typename T>
  void convert(std::string_view name, const json::value& v, std::optional<T>& out) const {
    T value{};
    convert(name, v, value);
    out = value;
  }
  template <typename T>
  void convert(std::string_view name, const json::value& v, std::vector<T>& out) const {
    if (!v.is_array()) wrong(name, v, "an array");
    out.clear();
    out.reserve(v.get_array().size());
    for (const json::value& item : v.get_array()) {
      T element{};
      convert(name, item, element);
      out.push_back(std::move(element));
    }
  }
  template <typename A, typename B>
  void convert(std::string_view name, const json::value& v, std::pair<A, B>& out) const {
    if (!v.is_array() || v.get_array().size() != 2) wrong(name, v, "pairs [id, value]");
    convert(name, v.get_array()[0], out.first);
    convert(name, v.get_array()[1], out.second);
  }

  std::string where_;
  const json::object* object_ = nullptr;
  std::string names_;
  std::size_t met_ = 0;
};

}  // namespace

EngineOptions engine_options_from_json(std::string_view text) {
  const json::value v = json::parse_text(text, "options");
  EngineOptions o;
  Fields f(v, "options");
  f.read("model_dir", o.model_dir);
  f.read("device", o.device);
  f.read("isa", o.isa);
  f.read("threads", o.threads);
  f.read("kv", o.kv);
  f.read("weights", o.weights);
  f.read("max_context", o.max_context);
  f.read("cache_tokens", o.cache_tokens);
  f.read("chunk_tokens", o.chunk_tokens);
  f.read("touch_ahead_bytes", o.touch_ahead_bytes);
  f.read("max_requests", o.max_requests);
  f.read("latent_eps", o.latent_eps);
  f.read("window_tokens", o.window_tokens);
  f.read("prefix_cache", o.prefix_cache);
  f.read("cache_dir", o.cache_dir);
  f.read("cache_dir_bytes", o.cache_dir_bytes);
  f.read("use_thread", o.use_thread);
  f.read("synthetic_layers", o.synthetic_layers);
  f.finish();
  return o;
}

Request request_from_json(std::string_view text) {
  const json::value v = json::parse_text(text, "request");
  Request r;
  Fields f(v, "request");
  f.read("ids", r.ids);
  f.read("max_tokens", r.max_tokens);
  f.read("stop_ids", r.stop_ids);
  f.read("stop", r.stop);
  f.read("ignore_eos", r.ignore_eos);
  f.read("constraint", r.constraint);
  f.read("priority", r.priority);
  f.read("timeout_s", r.timeout_s);
  f.read("skip_special", r.skip_special);
  const json::value* sampling = f.nested("sampling");
  f.finish();
  if (sampling != nullptr) {
    SamplingParams& p = r.sampling;
    Fields s(*sampling, "sampling");
    s.read("temperature", p.temperature);
    s.read("top_p", p.top_p);
    s.read("top_k", p.top_k);
    s.read("min_p", p.min_p);
    s.read("repetition_penalty", p.repetition_penalty);
    s.read("presence_penalty", p.presence_penalty);
    s.read("frequency_penalty", p.frequency_penalty);
    s.read("seed", p.seed);
    s.read("logit_bias", p.logit_bias);
    s.read("logprobs", p.logprobs);
    s.finish();
  }
  return r;
}

std::string to_json(const EngineStats& s) {
  return json::dump_python(json::object{{"steps", s.steps},
                                        {"running_requests", s.running_requests},
                                        {"waiting_requests", s.waiting_requests},
                                        {"prefill_tokens", s.prefill_tokens},
                                        {"decode_tokens", s.decode_tokens},
                                        {"step_s", s.step_s},
                                        {"cache_tokens", s.cache_tokens},
                                        {"cache_tokens_used", s.cache_tokens_used},
                                        {"cache_tokens_kept", s.cache_tokens_kept},
                                        {"cached_tokens", s.cached_tokens},
                                        {"evicted_tokens", s.evicted_tokens},
                                        {"preemptions", s.preemptions},
                                        {"disk_loaded_tokens", s.disk_loaded_tokens},
                                        {"disk_bytes", s.disk_bytes},
                                        {"disk_files", s.disk_files}});
}

std::string to_json(const ModelInfo& i) {
  json::array eos;
  for (const std::int32_t id : i.eos_ids) eos.emplace_back(id);
  return json::dump_python(json::object{{"model_dir", i.model_dir},
                                        {"backend", i.backend},
                                        {"n_layers", i.n_layers},
                                        {"vocab", i.vocab},
                                        {"n_parameters", i.n_parameters},
                                        {"weight_bytes", i.weight_bytes},
                                        {"active_bytes", i.active_bytes},
                                        {"cache_bytes_a_token", i.cache_bytes_a_token},
                                        {"max_context", i.max_context},
                                        {"has_mtp", i.has_mtp},
                                        {"eos_ids", std::move(eos)}});
}

std::string to_json(const Usage& u) {
  return json::dump_python(json::object{{"prompt_tokens", u.prompt_tokens},
                                        {"cached_tokens", u.cached_tokens},
                                        {"generated_tokens", u.generated_tokens},
                                        {"queue_s", u.queue_s},
                                        {"prefill_s", u.prefill_s},
                                        {"decode_s", u.decode_s},
                                        {"seed", u.seed},
                                        {"logits_hash", u.logits_hash}});
}

std::string_view finish_name(Finish finish) {
  switch (finish) {
    case Finish::kNone:
      return "";
    case Finish::kEos:
      return "eos";
    case Finish::kStop:
      return "stop";
    case Finish::kLength:
      return "length";
    case Finish::kCancelled:
      return "cancelled";
    case Finish::kError:
      return "error";
    case Finish::kTimeout:
      return "timeout";
  }
  return "";
}

}  // namespace glint
