/* Glint's C ABI: open a model, submit requests, read events. C99; the C++ API is engine.hpp.
 *
 * Strings are UTF-8. Options and requests are JSON objects with the field names of the C++ structs EngineOptions and
 * Request (engine.hpp); a field left out or null keeps its default, an unknown one is refused by name:
 *   options {"model_dir": "models/tiny", "device": "cpu", "threads": 2, "kv": "int8", "max_context": 4096, ...}
 *   request {"ids": [8130, 8132, 17], "max_tokens": 64, "stop": ["\n\n"],
 *            "priority": -1, "timeout_s": 30,
            "sampling": {"temperature": 0.7, "top_p": 0.95, "seed": 1, "logit_bias": [[17, -1.5]], "logprobs": 5}}
 *
 * Errors: a function that takes `char** error` says in its return value that it failed, and then sets *error to one
 * line of text, to be freed with glint_free. `error` may be NULL. On success *error is not touched.
 *
 * Threads: every function may be called by any thread, except that glint_close must be the last call on an engine. */
#ifndef GLINT_GLINT_H
#define GLINT_GLINT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define GLINT_API __attribute__((visibility("default")))
#else
#define GLINT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct glint_engine glint_engine;

/* Why a request ended. */
typedef enum glint_finish {
  GLINT_NOT_FINISHED = 0,
  GLINT_EOS = 1,       /* one of the model's end tokens */
  GLINT_STOP = 2,      /* a stop id or string */
  GLINT_LENGTH = 3,    /* max_tokens or the context */
  GLINT_CANCELLED = 4, /* glint_cancel */
  GLINT_ERROR = 5,     /* this request failed alone; see glint_event.error */
  GLINT_TIMEOUT = 6    /* the request's timeout_s; what came before is valid */
} glint_finish;

typedef struct glint_token_logprob {
  int32_t id;
  float logprob; /* of the model's distribution, before temperature, penalties and filters */
} glint_token_logprob;

typedef struct glint_usage {
  int64_t prompt_tokens;
  int64_t cached_tokens;    /* prompt tokens found in the cache */
  int64_t generated_tokens; /* end tokens included */
  double queue_s;           /* submit to first step */
  double prefill_s;         /* first step to first token */
  double decode_s;          /* first token to last token */
  uint64_t seed;
  uint64_t logits_hash; /* xxh3 of the last logits row, to compare runs; 0 if no token was made */
} glint_usage;

/* Pointers are valid until the same thread's next call of glint_next. */
typedef struct glint_event {
  int32_t token;    /* -1: no token (prefill progress, a flush of text, or the end) */
  const char* text; /* complete characters only; may be empty or hold several tokens' text; ends with a NUL byte */
  size_t text_bytes;
  int32_t has_logprob; /* 1: logprob is that of `token` */
  float logprob;
  const glint_token_logprob* top_logprobs; /* [n_top_logprobs], most likely first */
  size_t n_top_logprobs;
  int64_t prefill_done; /* prompt tokens read so far */
  int32_t finish;       /* glint_finish */
  const char* stop_string;
  const char* error;
  glint_usage usage; /* complete when finish is set; prompt_tokens always */
} glint_event;

/* What an engine tells without being asked. Every member may be NULL. */
typedef struct glint_callbacks {
  /* While the model loads, by the thread that opens it. */
  void (*on_load)(uint64_t done_bytes, uint64_t total_bytes, void* user);
  /* Something is wrong that costs speed and no result: a damaged file in cache_dir, a full disk. By any thread until
   * glint_close has returned; the text is valid during the call; the engine must not be called from here. */
  void (*on_notice)(const char* text, void* user);
  void* user;
} glint_callbacks;

/* "0.1.0" */
GLINT_API const char* glint_version(void);

/* Loads a model. NULL on failure. `callbacks` may be NULL; it is copied. */
GLINT_API glint_engine* glint_open(const char* options_json, const glint_callbacks* callbacks, char** error);

/* Ends all requests (a thread that waits in glint_next gets GLINT_CANCELLED) and frees the model. NULL is ignored. */
GLINT_API void glint_close(glint_engine* engine);

/* The request's id, > 0; or -1 with *error when it can never run. */
GLINT_API int64_t glint_submit(glint_engine* engine, const char* request_json, char** error);

/* 1: *event is the request's next event. 0: none came within timeout_ms (negative: wait as long as it takes).
 * -1: *error, e.g. for an unknown id; an id is forgotten after the event that has `finish` set. */
GLINT_API int glint_next(glint_engine* engine, int64_t request, int64_t timeout_ms, glint_event* event, char** error);

/* Ends the request at once; its last event says GLINT_CANCELLED. Unknown ids are ignored. */
GLINT_API void glint_cancel(glint_engine* engine, int64_t request);

/* Text to token ids: 0, *ids (freed with glint_free) and *n_ids; or -1 with *error. `literal` != 0 reads tags such as
 * <|user|> in the text as plain text. */
GLINT_API int glint_encode(glint_engine* engine, const char* text, size_t text_bytes, int literal, int32_t** ids,
                           size_t* n_ids, char** error);

/* Token ids to bytes (freed with glint_free; a NUL byte follows them), or NULL with *error. The bytes need not be whole
 * characters. *n_bytes may be NULL. `skip_special` != 0 leaves special tokens out. */
GLINT_API char* glint_decode(glint_engine* engine, const int32_t* ids, size_t n_ids, int skip_special, size_t* n_bytes,
                             char** error);

/* {"messages": [...], "tools": [...], "enable_thinking": true, ...} to the prompt's text. Freed with glint_free. */
GLINT_API char* glint_render_chat(glint_engine* engine, const char* request_json, char** error);

/* The model's answer to {"reasoning_content", "content", "tool_calls"}; options {"tools", "enable_thinking"} may be
 * NULL. Freed with glint_free. */
GLINT_API char* glint_parse_output(glint_engine* engine, const char* text, size_t text_bytes, const char* options_json,
                                   char** error);

/* logprobs[i] = log p(ids[i + 1] | ids[0 .. i]) for i in [0, n_ids - 1): 0, or -1 with *error. */
GLINT_API int glint_score(glint_engine* engine, const int32_t* ids, size_t n_ids, float* logprobs, char** error);

/* EngineStats and ModelInfo as JSON objects. Freed with glint_free. */
GLINT_API char* glint_stats(glint_engine* engine, char** error);
GLINT_API char* glint_info(glint_engine* engine, char** error);

/* Frees what the functions above gave out. NULL is ignored. */
GLINT_API void glint_free(void* pointer);

#ifdef __cplusplus
}
#endif

#endif /* GLINT_GLINT_H */
