/* The C ABI from C99: the whole way from text to text, errors, and what must be freed. Run from the source root. */

#define _POSIX_C_SOURCE 200809L /* mkdtemp */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "glint/glint.h"

static int failures = 0;

#define EXPECT(condition)                                             \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                     \
    }                                                                 \
  } while (0)

static void expect_error(char** error, const char* part) {
  EXPECT(*error != NULL);
  if (*error != NULL && strstr(*error, part) == NULL) {
    fprintf(stderr, "error \"%s\" does not say \"%s\"\n", *error, part);
    ++failures;
  }
  glint_free(*error);
  *error = NULL;
}

static uint64_t loaded = 0;
static void on_load(uint64_t done, uint64_t total, void* user) {
  EXPECT(done <= total);
  *(uint64_t*)user = done;
}

static char notice[256];
static void on_notice(const char* text, void* user) {
  (void)user;
  strncpy(notice, text, sizeof(notice) - 1);
}

/* A file that is no block of ours is said and removed. */
static void test_notice(void) {
  char folder[] = "/tmp/glint_c_api_XXXXXX";
  EXPECT(mkdtemp(folder) != NULL);
  char path[128];
  snprintf(path, sizeof(path), "%s/0123456789abcdef.kv", folder);
  FILE* file = fopen(path, "wb");
  EXPECT(file != NULL && fputs("no block", file) >= 0 && fclose(file) == 0);
  char options[256];
  snprintf(options, sizeof(options),
           "{\"model_dir\": \"models/tiny\", \"max_context\": 256, \"cache_tokens\": 1024, \"cache_dir\": \"%s\"}",
           folder);
  glint_callbacks callbacks = {NULL, on_notice, NULL};
  char* error = NULL;
  glint_engine* engine = glint_open(options, &callbacks, &error);
  EXPECT(engine != NULL);
  glint_close(engine);
  EXPECT(strstr(notice, "0123456789abcdef.kv") != NULL);
  EXPECT(access(path, F_OK) != 0);
  snprintf(path, sizeof(path), "%s/lock", folder);
  remove(path);
  EXPECT(rmdir(folder) == 0);
}

static void test_errors_of_open(void) {
  char* error = NULL;
  EXPECT(glint_open("{\"model_dir\": \"no/such/dir\"}", NULL, &error) == NULL);
  expect_error(&error, "no/such/dir");
  EXPECT(glint_open("{\"model\": \"models/tiny\"}", NULL, &error) == NULL);
  expect_error(&error, "unknown field \"model\"");
  EXPECT(glint_open("{\"threads\": \"two\"}", NULL, &error) == NULL);
  expect_error(&error, "threads");
  EXPECT(glint_open("not json", NULL, &error) == NULL);
  expect_error(&error, "options");
  EXPECT(glint_open(NULL, NULL, &error) == NULL);
  expect_error(&error, "NULL");
  EXPECT(glint_open("{", NULL, NULL) == NULL); /* nobody wants the text */
}

static void test_text(glint_engine* engine) {
  char* error = NULL;
  int32_t* ids = NULL;
  size_t n = 0;
  size_t bytes = 0;
  const char* text = "[gMASK]<sop>Hello";
  EXPECT(glint_encode(engine, text, strlen(text), 0, &ids, &n, &error) == 0);
  EXPECT(n >= 3);
  char* back = glint_decode(engine, ids, n, 0, &bytes, &error);
  EXPECT(back != NULL && strcmp(back, text) == 0 && bytes == strlen(text));
  glint_free(back);
  back = glint_decode(engine, ids, n, 1, NULL, &error);
  EXPECT(back != NULL && strcmp(back, "Hello") == 0);
  glint_free(back);
  glint_free(ids);
  EXPECT(glint_encode(engine, "", 0, 1, &ids, &n, &error) == 0 && n == 0);
  glint_free(ids);
  const int32_t unknown = 1 << 20;
  EXPECT(glint_decode(engine, &unknown, 1, 0, NULL, &error) == NULL);
  expect_error(&error, "1048576");

  char* prompt = glint_render_chat(
      engine, "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"enable_thinking\": false}", &error);
  EXPECT(prompt != NULL && strcmp(prompt, "[gMASK]<sop><|user|>Hi<|assistant|></think>") == 0);
  glint_free(prompt);
  EXPECT(glint_render_chat(engine, "{}", &error) == NULL);
  expect_error(&error, "messages");
  const char* output = "because</think>Yes.";
  char* parsed = glint_parse_output(engine, output, strlen(output), NULL, &error);
  EXPECT(parsed != NULL && strstr(parsed, "\"reasoning_content\": \"because\"") != NULL);
  EXPECT(parsed != NULL && strstr(parsed, "\"content\": \"Yes.\"") != NULL);
  glint_free(parsed);
}

static void test_generate(glint_engine* engine) {
  char* error = NULL;
  const int64_t id = glint_submit(engine,
                                  "{\"ids\": [8129, 8131, 376, 262], \"max_tokens\": 8, \"ignore_eos\": true, "
                                  "\"sampling\": {\"temperature\": 0, \"logprobs\": 2, \"seed\": 5}}",
                                  &error);
  EXPECT(id > 0);
  int tokens = 0;
  size_t text_bytes = 0;
  glint_event event;
  for (;;) {
    const int got = glint_next(engine, id, -1, &event, &error);
    EXPECT(got == 1);
    if (got != 1) break;
    EXPECT(strlen(event.text) == event.text_bytes);
    text_bytes += event.text_bytes;
    if (event.token >= 0) {
      ++tokens;
      EXPECT(event.has_logprob == 1 && event.n_top_logprobs == 2);
      EXPECT(event.top_logprobs[0].id == event.token && event.top_logprobs[0].logprob == event.logprob);
    }
    if (event.finish != GLINT_NOT_FINISHED) break;
  }
  EXPECT(event.finish == GLINT_LENGTH);
  EXPECT(tokens == 8 && text_bytes > 0);
  EXPECT(event.usage.generated_tokens == 8 && event.usage.prompt_tokens == 4 && event.usage.seed == 5);
  EXPECT(event.usage.logits_hash != 0);
  EXPECT(glint_next(engine, id, 0, &event, &error) == -1);
  expect_error(&error, "unknown");
}

static void test_cancel_and_refuse(glint_engine* engine) {
  char* error = NULL;
  const int64_t id = glint_submit(engine, "{\"ids\": [8129, 8131], \"ignore_eos\": true}", &error);
  EXPECT(id > 0);
  glint_cancel(engine, id);
  glint_cancel(engine, 99999);
  glint_event event;
  event.finish = GLINT_NOT_FINISHED;
  while (event.finish == GLINT_NOT_FINISHED) {
    if (glint_next(engine, id, 60000, &event, &error) != 1) {
      EXPECT(0);
      break;
    }
  }
  EXPECT(event.finish == GLINT_CANCELLED);
  const int64_t late = glint_submit(
      engine, "{\"ids\": [8129, 8131], \"ignore_eos\": true, \"priority\": 3, \"timeout_s\": 0.001}", &error);
  EXPECT(late > 0);
  do { EXPECT(glint_next(engine, late, 60000, &event, &error) == 1); } while (event.finish == GLINT_NOT_FINISHED);
  EXPECT(event.finish == GLINT_TIMEOUT);
  EXPECT(glint_submit(engine, "{\"ids\": [1], \"timeout_s\": -1}", &error) == -1);
  expect_error(&error, "timeout_s");
  EXPECT(glint_submit(engine, "{\"ids\": []}", &error) == -1);
  expect_error(&error, "ids");
  EXPECT(glint_submit(engine, "{\"ids\": [1], \"n\": 2}", &error) == -1);
  expect_error(&error, "unknown field \"n\"");
  EXPECT(glint_submit(NULL, "{\"ids\": [1]}", &error) == -1);
  expect_error(&error, "engine");
}

static void test_score_and_info(glint_engine* engine) {
  char* error = NULL;
  const int32_t ids[4] = {8129, 8131, 376, 262};
  float logprobs[3] = {1, 1, 1};
  EXPECT(glint_score(engine, ids, 4, logprobs, &error) == 0);
  for (int i = 0; i < 3; ++i) EXPECT(logprobs[i] < 0);
  char* info = glint_info(engine, &error);
  EXPECT(info != NULL && strstr(info, "\"vocab\": 8192") != NULL);
  glint_free(info);
  char* stats = glint_stats(engine, &error);
  EXPECT(stats != NULL && strstr(stats, "\"decode_tokens\": ") != NULL);
  glint_free(stats);
}

int main(void) {
  char* error = NULL;
  EXPECT(strcmp(glint_version(), "0.1.0") == 0);
  test_errors_of_open();
  test_notice();
  glint_callbacks callbacks = {on_load, NULL, &loaded};
  glint_engine* engine =
      glint_open("{\"model_dir\": \"models/tiny\", \"threads\": 1, \"max_context\": 256, \"cache_tokens\": 1024}",
                 &callbacks, &error);
  if (engine == NULL) {
    fprintf(stderr, "glint_open: %s\n", error);
    glint_free(error);
    return 1;
  }
  EXPECT(loaded > 0);
  test_text(engine);
  test_generate(engine);
  test_cancel_and_refuse(engine);
  test_score_and_info(engine);
  glint_close(engine);
  glint_close(NULL);
  glint_free(NULL);
  if (failures > 0) fprintf(stderr, "%d failures\n", failures);
  return failures > 0 ? 1 : 0;
}
