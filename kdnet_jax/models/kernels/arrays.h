// The arrays that XLA hands over: float32 and channels-last, "b d h w c"; kernels "kd kh kw c o".

#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Argument = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Dims = std::vector<int64_t>;

Dims ToDims(ffi::Span<const int64_t> span) { return Dims(span.begin(), span.end()); }

// Calls body(): its exceptions may not reach XLA, which knows a want of memory by its code. (One in a
// parallel region of body, where threads make their small buffers, ends the process.)
template <typename Body>
ffi::Error Guarded(Body body) {
  try {
    body();
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory is left for a CPU kernel");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

}  // namespace
