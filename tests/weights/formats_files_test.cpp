// Matrix schemes over whole files: what glint quantize writes comes back; experts in one tensor keep their blocks.

#include "weights/format_samples.hpp"

namespace glint {
namespace {

// ---- what Glint writes ---------------------------------------------------------------------------------------------

TEST(Formats, FilesOfGlintQuantizeComeBack) {
  std::vector<float> values(128 * 256);
  Dice dice(13);
  for (float& v : values) v = static_cast<float>(dice.below(2001) - 1000) / 1000.0F;
  const QuantSpec specs[] = {{.group = 32},
                             {.group = 128, .scale_dtype = DType::kF32},
                             {.format = WeightFormat::kI8, .group = 0},
                             {.format = WeightFormat::kF8E4M3, .group = 0},
                             {.format = WeightFormat::kF8E4M3, .group = 128, .group_rows = 128},
                             {.format = WeightFormat::kNF4, .group = 64, .scale_dtype = DType::kF32}};
  for (const QuantSpec& spec : specs) {
    SCOPED_TRACE(spec.name());
    const QuantizedWeight q = quantize_rtn(spec, values.data(), 128, 256);
    const TempDir dir;
    SafetensorsWriter writer(dir / "model.safetensors", stored_tensors(spec, kBase, 128, 256));
    write_quantized(writer, spec, kBase, q);
    writer.finish();
    const Checkpoint checkpoint(dir.path());
    const StoredMatrix m = read_matrix(checkpoint, kBase, 128, 256, {});
    EXPECT_TRUE(m.owned.empty());
    EXPECT_EQ(m.used.size(), checkpoint.tensors().size());
    std::vector<float> a(256), b(256);
    for (std::int64_t r = 0; r < 128; ++r) {
      decode_row(m.weight, r, a.data());
      decode_row(q.w, r, b.data());
      ASSERT_EQ(a, b) << r;
    }
  }
}

// ---- experts in one tensor -----------------------------------------------------------------------------------------

TEST(Formats, FusedExpertsKeepTheirBlocks) {
  // 2 experts of 192 rows: a block row and a half each, so that blocks begin anew at row 192.
  Stored s{.rows = 384, .cols = 256};
  const View w = s.add("", DType::kF8E4M3, {2, 192, 256}), scales = s.add("_scale_inv", DType::kF32, {2, 2, 2});
  Dice dice(17);
  fill_scales(scales, dice);
  for (std::int64_t i = 0; i < w.shape.elements(); ++i) {
    w.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(dice.below(127));
    const std::int64_t e = i / (192 * 256), r = i / 256 % 192, k = i % 256;
    s.values.push_back(float_at(scales, e * 4 + r / 128 * 2 + k / 128) * f8e4m3_to_float(w.as<std::uint8_t>()[i]));
  }
  expect_values(s, "block fp8", Place::kCodes);
  EXPECT_EQ(read(s)->matrix.weight.group_rows, 1);
}

}  // namespace
}  // namespace glint
