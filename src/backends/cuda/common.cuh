#pragma once
// Device building blocks: numbers, tensor-core products, asynchronous copies, and the one decoder of weights that works
// for every format and place.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "backends/cuda/kernels.hpp"

namespace glint::cuda {

// MLA sizes, the names of ops/params.hpp without its headers.
constexpr int kLatentWidth = 512, kRowWidth = 576, kNopeWidth = 192, kQkWidth = 256, kPageRows = 64;
constexpr std::int64_t kMaxGridY = 65535;

// ---- launching ------------------------------------------------------------------------------------------------------

// Every thread of every kernel passes pdl_wait() before it touches anything that another kernel wrote, and before it
// ends: then a kernel's end implies the end of all before it. Before it, only weights may be read.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

void allow_shared_memory(const void* kernel, std::size_t bytes);  // device.cpp

// `cluster` neighbours of the grid's x share a cluster.
template <typename... P, typename... A>
void launch_clusters(const Launch& l, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t smem, int cluster,
                     A&&... args) {
  if (smem > (48U << 10)) allow_shared_memory(reinterpret_cast<const void*>(kernel), smem);
  cudaLaunchAttribute attributes[2]{};
  unsigned n = 0;
  if (l.pdl) {
    attributes[n].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[n++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[n].id = cudaLaunchAttributeClusterDimension;
    attributes[n++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem;
  config.stream = l.stream;
  config.attrs = attributes;
  config.numAttrs = n;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), "kernel launch");
}
template <typename... P, typename... A>
void launch(const Launch& l, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t smem, A&&... args) {
  launch_clusters(l, kernel, grid, block, smem, 1, std::forward<A>(args)...);
}

inline unsigned ceil_div(std::int64_t a, std::int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// ---- numbers --------------------------------------------------------------------------------------------------------

// Two floats as bf16, `lo` in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float lo, float hi) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ float bf16_low(std::uint32_t v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float bf16_high(std::uint32_t v) { return __uint_as_float(v & 0xffff0000U); }

// (v & kMask) | kBits in one instruction: of the two constants one has to be in a register, which compilers avoid.
template <std::uint32_t kMask, std::uint32_t kBits>
__device__ __forceinline__ std::uint32_t and_or(std::uint32_t v) {
  std::uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(v), "n"(kMask), "n"(kBits));
  return r;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0F + expf(-x)); }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xffffffffU, v, i);
  return v;
}

// The sum over a block of up to 32 warps, in every thread. `shared` holds 33 floats and may be reused after the next
// barrier.
__device__ __forceinline__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  const int warp = threadIdx.x / 32, n_warps = (blockDim.x + 31) / 32;
  if (threadIdx.x % 32 == 0) shared[warp] = v;
  __syncthreads();
  if (warp == 0) {
    float s = threadIdx.x < n_warps ? shared[threadIdx.x] : 0.0F;
    s = warp_sum(s);
    if (threadIdx.x == 0) shared[32] = s;
  }
  __syncthreads();
  return shared[32];
}

// cos and sin of the angle `revolutions · position` turns. The product is reduced in double: at position 200,000 an
// fp32 angle would be off by 0.01.
__device__ __forceinline__ void rope_angle(double revolutions, int position, float* c, float* s) {
  const double turns = revolutions * position;
  sincospif(2.0F * static_cast<float>(turns - rint(turns)), s, c);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

// 16 bytes that are read once: weights.
__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes, or writes zeros where `valid` is false (then nothing is read).
__device__ __forceinline__ void cp_async16(std::uint32_t dst, const void* src, bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ uint4 lds128(std::uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
__device__ __forceinline__ void sts128(std::uint32_t address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// Byte offset of 16-byte unit u of row r; rows are multiples of 128 bytes, the low three bits of u are turned by the
// row: then eight rows' units of one column lie in different banks.
__device__ __forceinline__ std::uint32_t swizzled(int row, int unit, int row_bytes) {
  return static_cast<std::uint32_t>(row * row_bytes + (((unit & ~7) | ((unit ^ row) & 7)) << 4));
}

// Two neighbouring values of a row, as far as the row goes.
__device__ __forceinline__ void store_pair(float* row, int o, int limit, float v0, float v1) {
  if (o + 1 < limit && reinterpret_cast<std::uintptr_t>(row + o) % 8 == 0) {
    *reinterpret_cast<float2*>(row + o) = {v0, v1};
  } else {
    if (o < limit) row[o] = v0;
    if (o + 1 < limit) row[o + 1] = v1;
  }
}
__device__ __forceinline__ void store_pair(std::uint16_t* row, int o, int limit, float v0, float v1) {
  const std::uint32_t p = pack_bf16(v0, v1);
  if (o + 1 < limit && reinterpret_cast<std::uintptr_t>(row + o) % 4 == 0) {
    *reinterpret_cast<std::uint32_t*>(row + o) = p;
  } else {
    if (o < limit) row[o] = static_cast<std::uint16_t>(p);
    if (o + 1 < limit) row[o + 1] = static_cast<std::uint16_t>(p >> 16);
  }
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------

// c[16×8] += a[16×16] · b[16×8]. With lane = 4 g + t: a0 = (row g, k 2t), a1 = (row g+8, k 2t), a2 = (row g, k 2t+8),
// a3 = (row g+8, k 2t+8); b0 = (k 2t, column g), b1 = (k 2t+8, column g); c = (row g: columns 2t, 2t+1; row g+8: same).
__device__ __forceinline__ void mma(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// As mma() and exp2f(), free to be moved by the compiler.
__device__ __forceinline__ void product(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                        std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same of FP16 numbers.
__device__ __forceinline__ void half_product(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c[16×8] += a[16×32] · b[32×8] of signed bytes, four in a register; k 4t and k 4t+16 where mma() has k 2t and k 2t+8.
__device__ __forceinline__ void integer_product(int (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                                std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two 8×8 tiles, or four; lane i gives the address of row i % 8 of tile i / 8.
__device__ __forceinline__ void ldmatrix2(std::uint32_t (&r)[2], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4_trans(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// ---- weights of any format ------------------------------------------------------------------------------------------

// As kNf4Codebook in tensor/codec.hpp.
static __device__ __constant__ float kNf4[16] = {-1.0F,
                                                 -0.6961928009986877F,
                                                 -0.5250730514526367F,
                                                 -0.39491748809814453F,
                                                 -0.28444138169288635F,
                                                 -0.18477343022823334F,
                                                 -0.09105003625154495F,
                                                 0.0F,
                                                 0.07958029955625534F,
                                                 0.16093020141124725F,
                                                 0.24611230194568634F,
                                                 0.33791524171829224F,
                                                 0.44070982933044434F,
                                                 0.5626170039176941F,
                                                 0.7229568362236023F,
                                                 1.0F};

__device__ __forceinline__ float half_to_float(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// The code's sign, exponent and mantissa in a float's places stand for 2^-120 of its value, subnormal codes included.
// (The two NaN codes become ±480; checkpoints have none.)
__device__ __forceinline__ float e4m3_raw(std::uint32_t code) {
  return __uint_as_float(((code & 0x80U) << 24) | ((code & 0x7fU) << 20));
}
constexpr float kE4m3Factor = 0x1p120F;

// Raw bits of scale i, and what they stand for.
__device__ __forceinline__ std::uint32_t scale_bits(const void* p, DType t, std::int64_t i) {
  if (t == DType::kF32) return __ldg(static_cast<const std::uint32_t*>(p) + i);
  return __ldg(static_cast<const std::uint16_t*>(p) + i);
}
__device__ __forceinline__ float scale_value(std::uint32_t bits, DType t) {
  if (t == DType::kF32) return __uint_as_float(bits);
  if (t == DType::kBF16) return __uint_as_float(bits << 16);
  return half_to_float(static_cast<std::uint16_t>(bits));
}

struct Scale {
  float scale = 1, min = 0;
};
__device__ __forceinline__ Scale scale_of(const MatShape& m, const MatPtr& p, std::int64_t row, std::int64_t col) {
  const std::int64_t i = row / m.group_rows * m.groups_a_row + col / m.group;
  Scale s;
  s.scale = scale_value(scale_bits(p.scales, m.scale_dtype, i), m.scale_dtype);
  if (p.mins != nullptr) s.min = scale_value(scale_bits(p.mins, m.scale_dtype, i), m.scale_dtype);
  return s;
}

// As decode_row of tensor/codec.hpp, to the bit: a product and a sum are rounded apart.
__device__ __forceinline__ float code_value(WeightFormat f, std::uint32_t code, const Scale& s, bool has_min) {
  switch (f) {
    case WeightFormat::kF8E4M3:
      return e4m3_raw(code) * kE4m3Factor * s.scale;
    case WeightFormat::kI8:
      return __fadd_rn(__fmul_rn(static_cast<float>(static_cast<std::int8_t>(code)), s.scale), s.min);
    case WeightFormat::kI4:
      return has_min ? __fadd_rn(__fmul_rn(static_cast<float>(code), s.scale), s.min)
                     : (static_cast<float>(code) - 8.0F) * s.scale;
    default:
      return kNf4[code] * s.scale;
  }
}

// One element, anywhere.
static __device__ float weight_at(const MatShape& m, const MatPtr& p, std::int64_t row, std::int64_t col) {
  const std::int64_t i = row * m.cols + col;
  switch (m.format) {
    case WeightFormat::kF32:
      return static_cast<const float*>(p.data)[i];
    case WeightFormat::kF16:
      return half_to_float(static_cast<const std::uint16_t*>(p.data)[i]);
    case WeightFormat::kBF16:
      return __uint_as_float(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(p.data)[i]) << 16);
    default:
      break;
  }
  const auto* bytes = static_cast<const std::uint8_t*>(p.data);
  std::uint32_t code;
  if (m.format == WeightFormat::kF8E4M3 || m.format == WeightFormat::kI8) {
    code = bytes[i];
  } else {
    const std::uint32_t two = bytes[row * (m.cols / 2) + col / 2];
    const bool high = (col % 2 != 0) == (m.format == WeightFormat::kI4);
    code = high ? two >> 4 : two & 15U;
  }
  return code_value(m.format, code, scale_of(m, p, row, col), p.mins != nullptr);
}

// Eight columns from `col`, a multiple of 8 that no group boundary cuts; rows are aligned to eight values.
static __device__ __forceinline__ void weight8(const MatShape& m, const MatPtr& p, std::int64_t row, std::int64_t col,
                                               float (&v)[8]) {
  const std::int64_t i = row * m.cols + col;
  switch (m.format) {
    case WeightFormat::kF32: {
      const auto* f = reinterpret_cast<const float4*>(static_cast<const float*>(p.data) + i);
      const float4 a = __ldg(f), b = __ldg(f + 1);
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
      return;
    }
    case WeightFormat::kF16:
    case WeightFormat::kBF16: {
      const uint4 u = __ldg(reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(p.data) + i));
      const std::uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (m.format == WeightFormat::kBF16) {
          v[2 * k] = bf16_low(w[k]), v[2 * k + 1] = bf16_high(w[k]);
        } else {
          v[2 * k] = half_to_float(static_cast<std::uint16_t>(w[k])),
                v[2 * k + 1] = half_to_float(static_cast<std::uint16_t>(w[k] >> 16));
        }
      }
      return;
    }
    default:
      break;
  }
  const Scale s = scale_of(m, p, row, col);
  const auto* bytes = static_cast<const std::uint8_t*>(p.data);
  const bool has_min = p.mins != nullptr;
  if (m.format == WeightFormat::kF8E4M3 || m.format == WeightFormat::kI8) {
    const uint2 u = __ldg(reinterpret_cast<const uint2*>(bytes + i));
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = code_value(m.format, ((k < 4 ? u.x : u.y) >> (8 * (k % 4))) & 255U, s, has_min);
  } else {
    const std::uint32_t u = __ldg(reinterpret_cast<const std::uint32_t*>(bytes + i / 2));
    const std::uint32_t flip = m.format == WeightFormat::kI4 ? 0U : 1U;  // NF4 has the even column in the high nibble
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = code_value(m.format, (u >> (4 * (k ^ flip))) & 15U, s, has_min);
  }
}

// Element i of a row of activations as a float.
__device__ __forceinline__ float act_at(const Act& x, std::int64_t row, std::int64_t i) {
  const std::int64_t r = x.rows_index != nullptr ? x.rows_index[row] : row;
  if (!x.bf16) return static_cast<const float*>(x.data)[r * x.stride + i];
  return __uint_as_float(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(x.data)[r * x.stride + i]) << 16);
}

}  // namespace glint::cuda
