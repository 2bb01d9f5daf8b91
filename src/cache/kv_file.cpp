#include "cache/kv_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/hash.hpp"

namespace glint {
namespace {

constexpr char kMagic[8] = {'G', 'L', 'I', 'N', 'T', 'K', 'V', '\n'};
// To be raised with the layout, and when a backend computes other bits for the same tokens.
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kMostTokens = 1U << 26;

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t codec;
  std::uint64_t fingerprint;
  std::uint64_t page_bytes;
  std::uint32_t page_tokens;
  std::uint32_t n_layers;
  std::uint32_t first_page;
  std::uint32_t n_pages;
  std::uint64_t n_tokens;
  std::uint64_t tokens_hash;
  std::uint64_t pages_hash;   // of the hashes of its pieces
  std::uint64_t header_hash;  // of all before it
};
static_assert(sizeof(Header) == 80 && std::is_trivially_copyable_v<Header>);

class File {
 public:
  File(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0600)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool is_open() const { return fd_ >= 0; }
  std::int64_t size() const {
    struct stat s {};
    return ::fstat(fd_, &s) == 0 && S_ISREG(s.st_mode) ? static_cast<std::int64_t>(s.st_size) : -1;
  }
  bool read(void* to, std::size_t bytes) {
    auto* at = static_cast<char*>(to);
    while (bytes > 0) {
      const ssize_t n = ::read(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += n;
      bytes -= static_cast<std::size_t>(n);
    }
    return true;
  }
  bool write(const void* from, std::size_t bytes) {
    const auto* at = static_cast<const char*>(from);
    while (bytes > 0) {
      const ssize_t n = ::write(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += n;
      bytes -= static_cast<std::size_t>(n);
    }
    return true;
  }
  bool rewind() { return ::lseek(fd_, 0, SEEK_SET) == 0; }
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }  // a full disk may show here

 private:
  int fd_;
};

std::string last_error() { return std::strerror(errno); }

std::uint64_t hash_of(const Header& h) { return hash64(&h, offsetof(Header, header_hash)); }

// Leaves the file at its first page.
std::string read_head(File& file, Header* h, KvFileInfo* info) {
  const std::int64_t size = file.size();
  if (size < static_cast<std::int64_t>(sizeof(Header)) || !file.read(h, sizeof(Header))) return "too short";
  if (std::memcmp(h->magic, kMagic, sizeof kMagic) != 0) return "not a cache block";
  if (h->header_hash != hash_of(*h)) return "a damaged header";
  if (h->version != kVersion) return "version " + std::to_string(h->version);
  info->shape = {.fingerprint = h->fingerprint,
                 .codec = h->codec,
                 .page_tokens = h->page_tokens,
                 .n_layers = h->n_layers,
                 .page_bytes = h->page_bytes};
  info->first_page = h->first_page;
  info->n_pages = h->n_pages;
  if (h->n_tokens > kMostTokens ||
      h->n_tokens != (std::uint64_t{h->first_page} + h->n_pages) * std::uint64_t{h->page_tokens}) {
    return "a header that contradicts itself";
  }
  if (static_cast<std::uint64_t>(size) < sizeof(Header) + h->n_tokens * sizeof(std::int32_t)) return "cut off";
  info->tokens.resize(h->n_tokens);
  if (static_cast<std::uint64_t>(size) != info->file_bytes()) return "cut off";
  const std::size_t bytes = h->n_tokens * sizeof(std::int32_t);
  if (!file.read(info->tokens.data(), bytes)) return last_error();
  if (h->tokens_hash != hash64(info->tokens.data(), bytes)) return "damaged tokens";
  return {};
}

}  // namespace

std::uint64_t KvFileInfo::file_bytes() const {
  return sizeof(Header) + tokens.size() * sizeof(std::int32_t) +
         std::uint64_t{n_pages} * shape.n_layers * shape.page_bytes;
}

std::string read_kv_file_info(const std::string& path, KvFileInfo* info) {
  File file(path, O_RDONLY);
  if (!file.is_open()) return last_error();
  Header h;
  return read_head(file, &h, info);
}

std::string read_kv_file(const std::string& path, const KvFileInfo& expected, const KvPiece& piece, bool* gone) {
  *gone = false;
  File file(path, O_RDONLY);
  if (!file.is_open()) {
    *gone = errno == ENOENT;
    return last_error();
  }
  Header h;
  KvFileInfo found;
  if (std::string wrong = read_head(file, &h, &found); !wrong.empty()) return wrong;
  if (found.shape != expected.shape || found.first_page != expected.first_page || found.n_pages < expected.n_pages ||
      !std::equal(expected.tokens.begin(), expected.tokens.end(), found.tokens.begin())) {
    return "another block than its name says";
  }
  std::vector<std::byte> unwanted(found.shape.page_bytes);
  std::vector<std::uint64_t> hashes;
  for (std::uint32_t p = 0; p < found.n_pages; ++p) {
    for (std::uint32_t l = 0; l < found.shape.n_layers; ++l) {
      std::byte* to = p < expected.n_pages ? piece(p, l) : nullptr;
      if (to == nullptr) to = unwanted.data();
      if (!file.read(to, found.shape.page_bytes)) return "cut off";
      hashes.push_back(hash64(to, found.shape.page_bytes));
    }
  }
  if (h.pages_hash != hash64(hashes.data(), hashes.size() * sizeof(std::uint64_t))) return "damaged pages";
  return {};
}

std::string write_kv_file(const std::string& path, const KvFileInfo& info, const KvPiece& piece) {
  File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (!file.is_open()) return last_error();
  const std::size_t token_bytes = info.tokens.size() * sizeof(std::int32_t);
  Header h{};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.version = kVersion;
  h.codec = info.shape.codec;
  h.fingerprint = info.shape.fingerprint;
  h.page_bytes = info.shape.page_bytes;
  h.page_tokens = info.shape.page_tokens;
  h.n_layers = info.shape.n_layers;
  h.first_page = info.first_page;
  h.n_pages = info.n_pages;
  h.n_tokens = info.tokens.size();
  h.tokens_hash = hash64(info.tokens.data(), token_bytes);
  // The header comes last into its place: until then the file is none.
  const Header empty{};
  if (!file.write(&empty, sizeof empty) || !file.write(info.tokens.data(), token_bytes)) return last_error();
  std::vector<std::uint64_t> hashes;
  for (std::uint32_t p = 0; p < info.n_pages; ++p) {
    for (std::uint32_t l = 0; l < info.shape.n_layers; ++l) {
      const std::byte* from = piece(p, l);
      hashes.push_back(hash64(from, info.shape.page_bytes));
      if (!file.write(from, info.shape.page_bytes)) return last_error();
    }
  }
  h.pages_hash = hash64(hashes.data(), hashes.size() * sizeof(std::uint64_t));
  h.header_hash = hash_of(h);
  if (!file.rewind() || !file.write(&h, sizeof h) || !file.close()) return last_error();
  return {};
}

}  // namespace glint
