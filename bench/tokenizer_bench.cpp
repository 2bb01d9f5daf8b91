// Tokenizing speed on one core, in MB/s of CPU time:
//   tokenizer_bench TOKENIZER_JSON TEXT_FILE [ROUNDS]
// The text file, whole and cut into requests of 2 KB, and made-up inputs without white space, on which a merge that
// is quadratic in the length of a pre-token would stand still. Each figure is the median of the rounds.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/file.hpp"
#include "text/tokenizer.hpp"

namespace {

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double median_seconds(int rounds, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < rounds; ++i) {
    const double begin = cpu_seconds();
    work();
    seconds.push_back(cpu_seconds() - begin);
  }
  std::nth_element(seconds.begin(), seconds.begin() + rounds / 2, seconds.end());
  return seconds[static_cast<std::size_t>(rounds / 2)];
}

// `letters` drawn at random, `bytes` long.
std::string noise(std::string_view letters, std::size_t bytes) {
  std::mt19937 random(1);
  std::string s(bytes, ' ');
  for (char& c : s) c = letters[random() % letters.size()];
  return s;
}

void report(const char* name, std::size_t bytes, std::size_t tokens, double seconds) {
  const double mb = 1e-6 * static_cast<double>(bytes);
  std::printf("%-28s %8.2f MB %9zu tokens %8.1f MB/s %8.1f ns/token\n", name, mb, tokens, mb / seconds,
              1e9 * seconds / static_cast<double>(tokens));
}

int measure(const char* tokenizer_path, const char* text_path, int rounds) {
  const double begin = cpu_seconds();
  const auto tokenizer = glint::Tokenizer::from_file(tokenizer_path);
  std::printf("load                         %8.3f s, %d tokens\n", cpu_seconds() - begin, tokenizer.vocab_size());
  const std::string text = glint::read_file(text_path);

  std::vector<std::int32_t> ids;
  const auto whole = [&](const char* name, const std::string& s) {
    const double seconds = median_seconds(rounds, [&] { ids = tokenizer.encode(s); });
    report(name, s.size(), ids.size(), seconds);
  };
  whole("text, whole", text);
  std::size_t tokens = 0;
  const double cut = median_seconds(rounds, [&] {
    tokens = 0;
    for (std::size_t i = 0; i < text.size(); i += 2048) {
      tokens += tokenizer.encode(std::string_view(text).substr(i, 2048)).size();
    }
  });
  report("text, requests of 2 KB", text.size(), tokens, cut);

  ids = tokenizer.encode(text);
  std::string back;
  const double decode = median_seconds(rounds, [&] { back = tokenizer.decode(ids); });
  report("decode", back.size(), ids.size(), decode);
  if (back != text) {
    std::fprintf(stderr, "decode(encode(text)) differs from the text\n");
    return 1;
  }

  constexpr std::size_t kBytes = 1'000'000;
  const std::string_view alphabet = "abcdefghijklmnopqrstuvwxyz";
  whole("one letter, 1 MB", std::string(kBytes, 'a'));
  whole("spaces, 1 MB", std::string(kBytes, ' '));
  whole("one symbol, 1 MB", std::string(kBytes, '='));
  whole("random letters, 1 MB", noise(alphabet, kBytes));
  whole("letters a and b, 1 MB", noise("ab", kBytes));
  std::string words = text.substr(0, 2 * kBytes);  // real words with nothing between them
  std::erase_if(words, [](char c) { return c < 'a' || c > 'z'; });
  whole("text without spaces", words);
  std::string bytes(kBytes, ' ');
  std::mt19937 random(2);
  for (char& c : bytes) c = static_cast<char>(random());
  whole("random bytes, 1 MB", bytes);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: tokenizer_bench TOKENIZER_JSON TEXT_FILE [ROUNDS]\n");
    return 2;
  }
  try {
    return measure(argv[1], argv[2], argc == 4 ? std::max(1, std::atoi(argv[3])) : 9);
  } catch (const glint::Error& e) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", e.what());
    return 1;
  }
}
