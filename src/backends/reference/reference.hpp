#pragma once
// The reference backend: plain fp32 on one thread, the meaning of every op. Other backends are tested against it and it
// is never tuned beyond letting a compiler vectorise its loops. Unlike the others it may allocate inside an op.
// Reads weights in every format and pages of every codec; activations are F32.

#include <memory>

#include "ops/ops.hpp"

namespace glint {

std::unique_ptr<Ops> make_reference_ops();

// The ops as free functions; contracts in ops/params.hpp.
namespace reference {

void embed(const EmbedParams& p);
void rms_norm(const RmsNormParams& p);
void linear(const LinearParams& p);
void mla_project(const MlaProjectParams& p);
void mla_append(const MlaAppendParams& p);
void mla_attend(const MlaAttendParams& p);           // expanded form: what the reference backend runs
void mla_attend_absorbed(const MlaAttendParams& p);  // the same attention by the mathematics of the fast kernels
void route(const RouteParams& p);
void moe(const MoeParams& p);
void mlp(const MlpParams& p);
void lm_head(const LmHeadParams& p);
void mtp_input(const MtpInputParams& p);
void sample(const SampleParams& p);

}  // namespace reference
}  // namespace glint
