// Convolutions: oneDNN's, but for a gradient that it has no kernel for.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "dnnl.hpp"
#include "kernel_gradient.h"

namespace {

using Tag = dnnl::memory::format_tag;
using Desc = dnnl::memory::desc;

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& Stream() {
  static dnnl::stream stream(Engine());
  return stream;
}

// oneDNN already uses all cores for one convolution, so a second one at the same time (XLA runs
// independent operations in parallel) would only fight for them; it also guards the caches below.
std::mutex convolution_mutex;

using Type = dnnl::memory::data_type;

Desc F32(const Dims& dims, Tag tag) { return Desc(dims, Type::f32, tag); }

bool Has(dnnl::cpu_isa wanted) {
  static const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  return (isa & static_cast<unsigned>(wanted)) == static_cast<unsigned>(wanted);
}

bool HasAvx512() { return Has(dnnl::cpu_isa::avx512_core); }

// How many voxels along the width are computed as one. oneDNN fills a vector register with the
// output channels of a voxel; where these are fewer than its floats, lanes stay empty. In a
// row-major table `group` voxels of `channels` are one voxel of `group * channels`, so that a
// convolution of stride `group`, whose kernel holds the given one `group` times, each a voxel
// further on, computes the same with fuller registers, at `taps + group - 1` taps instead of
// `taps`. (A voxel that is not finite reaches others of its group, too.)
int64_t Group(int64_t channels, int64_t width, int64_t taps) {
  const int64_t lanes = HasAvx512() ? 16 : 8;
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t group = 1; group <= lanes && width % group == 0; group *= 2) {
    const int64_t registers = (group * channels + lanes - 1) / lanes;
    const double cost = static_cast<double>(registers * (taps + group - 1)) / group;
    if (cost < least) best = group, least = cost;
  }
  return best;
}

// Stride 1, zero padding that keeps the size. The layout of activations is fixed, that of weights
// is oneDNN's choice: they are small, and reordered at each call.
struct Convolution {
  Dims kernel_dims;  // kd kh kw c o
  Type type;         // of the factors: f32, or bf16, which the input and the kernel are rounded to
  int64_t group;
  Desc input, kernel, bias, output;  // float32; kernel, bias and output as the group has them
  dnnl::convolution_forward::primitive_desc forward_desc;
  dnnl::convolution_backward_weights::primitive_desc backward_desc;
  dnnl::convolution_forward forward;
  dnnl::convolution_backward_weights backward;  // made when first needed

  Convolution(const Dims& x, const Dims& k, Type factors)
      : kernel_dims(k), type(factors), group(Group(k[4], x[3], k[2])) {
    const int64_t channels = group * k[4];
    input = F32({x[0], k[3], x[1], x[2], x[3]}, Tag::ndhwc);
    output = F32({x[0], channels, x[1], x[2], x[3] / group}, Tag::ndhwc);
    bias = F32({channels}, Tag::a);
    kernel = F32({channels, k[3], k[0], k[1], k[2] + group - 1}, Tag::dhwio);
    const Desc factor(input.get_dims(), type, Tag::ndhwc);
    forward_desc = {Engine(), dnnl::prop_kind::forward_training, kDirect, factor, AnyKernel(), bias,
                    output, Stride(), Pad(), Pad(), Attributes()};
    forward = dnnl::convolution_forward(forward_desc);
  }

  void MakeBackward() {
    if (backward) return;
    backward_desc = {Engine(), kDirect, input, AnyKernel(), bias, output, Stride(), Pad(), Pad(),
                     forward_desc, Attributes()};
    backward = dnnl::convolution_backward_weights(backward_desc);
  }

 private:
  static constexpr auto kDirect = dnnl::algorithm::convolution_direct;

  Desc AnyKernel() const { return Desc(kernel.get_dims(), type, Tag::any); }
  Dims Stride() const { return {1, 1, group}; }
  Dims Pad() const { return {kernel_dims[0] / 2, kernel_dims[1] / 2, kernel_dims[2] / 2}; }
  static dnnl::primitive_attr Attributes() {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    return attributes;
  }
};

Convolution& FindConvolution(const Dims& x, const Dims& k, Type type) {
  static std::map<std::pair<Type, Dims>, std::unique_ptr<Convolution>> cache;
  Dims dims(x);
  dims.insert(dims.end(), k.begin(), k.end());
  auto& slot = cache[{type, dims}];
  if (!slot) slot = std::make_unique<Convolution>(x, k, type);
  return *slot;
}

// Memory that serves all convolutions, since they run one at a time.
dnnl::memory Held(const Desc& desc, dnnl::memory& held) {
  if (!held || held.get_desc().get_size() < desc.get_size()) held = dnnl::memory(desc, Engine());
  return dnnl::memory(desc, Engine(), held.get_data_handle());
}

dnnl::memory Scratchpad(const Desc& desc) {
  static dnnl::memory held;
  return Held(desc, held);
}

dnnl::memory Rounded(const Desc& desc) {
  static dnnl::memory held;
  return Held(desc, held);
}

dnnl::memory Wrap(const Desc& desc, const float* data) {
  return dnnl::memory(desc, Engine(), const_cast<float*>(data));
}

dnnl::memory InLayout(const Desc& from, const float* data, const Desc& to) {
  dnnl::memory given = Wrap(from, data);
  if (from == to) return given;
  dnnl::memory wanted(to, Engine());
  dnnl::reorder(given, wanted).execute(Stream(), given, wanted);
  return wanted;
}

// Calls row(offset in the given kernel, offset in the group's) for each voxel of the group, tap and
// input channel; both rows hold the output channels.
template <typename Row>
void ForKernelRows(const Convolution& c, Row row) {
  const Dims& k = c.kernel_dims;
  const int64_t taps = k[2] + c.group - 1;
  for (int64_t voxel = 0; voxel < c.group; ++voxel) {
    for (int64_t plane = 0; plane < k[0] * k[1]; ++plane) {
      for (int64_t i = 0; i < k[2] * k[3]; ++i) {
        const int64_t wide = (plane * taps + voxel) * k[3] + i;
        row((plane * k[2] * k[3] + i) * k[4], (wide * c.group + voxel) * k[4]);
      }
    }
  }
}

void Forward(const Convolution& c, const float* x, const float* kernel, const float* bias,
             float* y) {
  const int64_t channels = c.kernel_dims[4];
  std::vector<float> wide_kernel, wide_bias;
  if (c.group > 1) {
    wide_kernel.resize(c.kernel.get_size() / sizeof(float));
    ForKernelRows(c, [&](int64_t from, int64_t to) {
      std::copy_n(kernel + from, channels, &wide_kernel[to]);
    });
    for (int64_t voxel = 0; voxel < c.group; ++voxel) {
      wide_bias.insert(wide_bias.end(), bias, bias + channels);
    }
    kernel = wide_kernel.data(), bias = wide_bias.data();
  }
  dnnl::memory input = Wrap(c.input, x);
  if (c.type != Type::f32) {
    dnnl::memory rounded = Rounded(c.forward_desc.src_desc());
    dnnl::reorder(input, rounded).execute(Stream(), input, rounded);
    input = rounded;
  }
  c.forward.execute(Stream(),
                    {{DNNL_ARG_SRC, input},
                     {DNNL_ARG_WEIGHTS, InLayout(c.kernel, kernel, c.forward_desc.weights_desc())},
                     {DNNL_ARG_BIAS, Wrap(c.bias, bias)},
                     {DNNL_ARG_DST, Wrap(c.output, y)},
                     {DNNL_ARG_SCRATCHPAD, Scratchpad(c.forward_desc.scratchpad_desc())}});
  Stream().wait();
}

// "kd kh kw c o" -> "kd kh kw o c", each axis of taps reversed: the gradient of the input is a
// convolution with it.
std::vector<float> Flipped(const float* kernel, const Dims& k) {
  constexpr int64_t kBlock = 16;  // floats of a cache line
  const int64_t taps = k[0] * k[1] * k[2], inputs = k[3], outputs = k[4];
  std::vector<float> flipped(taps * inputs * outputs);
#pragma omp parallel for schedule(static)
  for (int64_t tap = 0; tap < taps; ++tap) {
    const float* from = kernel + tap * inputs * outputs;
    float* to = flipped.data() + (taps - 1 - tap) * inputs * outputs;
    for (int64_t first = 0; first < inputs; first += kBlock) {
      const int64_t last = std::min(inputs, first + kBlock);
      for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t i = first; i < last; ++i) to[o * inputs + i] = from[i * outputs + o];
      }
    }
  }
  return flipped;
}

template <typename Body>
ffi::Error Alone(Body body) {
  return Guarded([&] {
    std::lock_guard<std::mutex> lock(convolution_mutex);
    try {
      body();
    } catch (const dnnl::error& error) {
      if (error.status == dnnl_out_of_memory) throw std::bad_alloc();
      throw std::runtime_error(std::string("oneDNN convolution: ") + error.what());
    }
  });
}

Type Factors(bool bfloat16) { return bfloat16 ? Type::bf16 : Type::f32; }

ffi::Error Convolve(Argument x, Argument kernel, Argument bias, Result y, bool bfloat16) {
  return Alone([&] {
    const Dims x_dims = ToDims(x.dimensions()), k = ToDims(kernel.dimensions());
    Forward(FindConvolution(x_dims, k, Factors(bfloat16)), x.typed_data(), kernel.typed_data(),
            bias.typed_data(), y->typed_data());
  });
}

ffi::Error ConvolveBackwardInput(Argument dy, Argument kernel, Result dx, bool bfloat16) {
  return Alone([&] {
    const Dims k = ToDims(kernel.dimensions());
    const std::vector<float> flipped = Flipped(kernel.typed_data(), k), no_bias(k[3], 0.0f);
    const Dims flipped_dims{k[0], k[1], k[2], k[4], k[3]};
    Forward(FindConvolution(ToDims(dy.dimensions()), flipped_dims, Factors(bfloat16)),
            dy.typed_data(), flipped.data(), no_bias.data(), dx->typed_data());
  });
}

ffi::Error ConvolveBackwardKernel(Argument x, Argument dy, Result dkernel, Result dbias) {
  return Alone([&] {
    const Dims x_dims = ToDims(x.dimensions()), k = ToDims(dkernel->dimensions());
    if (!HasAvx512() && k[2] == kTaps && k[4] < kManyOutputs) {
      SumKernelGradient(x_dims, k, x.typed_data(), dy.typed_data(), dkernel->typed_data(),
                        dbias->typed_data());
      return;
    }
    Convolution& c = FindConvolution(x_dims, k, Type::f32);
    c.MakeBackward();
    const auto& desc = c.backward_desc;
    const int64_t channels = c.kernel_dims[4];
    float *kernel = dkernel->typed_data(), *bias = dbias->typed_data();
    std::vector<float> wide_kernel, wide_bias;
    if (c.group > 1) {
      wide_kernel.resize(c.kernel.get_size() / sizeof(float));
      wide_bias.resize(c.group * channels);
      kernel = wide_kernel.data(), bias = wide_bias.data();
    }
    dnnl::memory wanted = Wrap(c.kernel, kernel);
    const bool same = desc.diff_weights_desc() == c.kernel;
    dnnl::memory found = same ? wanted : dnnl::memory(desc.diff_weights_desc(), Engine());
    c.backward.execute(Stream(), {{DNNL_ARG_SRC, Wrap(c.input, x.typed_data())},
                                  {DNNL_ARG_DIFF_DST, Wrap(c.output, dy.typed_data())},
                                  {DNNL_ARG_DIFF_WEIGHTS, found},
                                  {DNNL_ARG_DIFF_BIAS, Wrap(c.bias, bias)},
                                  {DNNL_ARG_SCRATCHPAD, Scratchpad(desc.scratchpad_desc())}});
    if (!same) dnnl::reorder(found, wanted).execute(Stream(), found, wanted);
    Stream().wait();
    if (c.group == 1) return;
    // The group's kernel held the given one several times: their gradients add up.
    float *kernel_sum = dkernel->typed_data(), *bias_sum = dbias->typed_data();
    std::fill_n(kernel_sum, dkernel->element_count(), 0.0f);
    std::fill_n(bias_sum, channels, 0.0f);
    ForKernelRows(c, [&](int64_t to, int64_t from) {
      for (int64_t o = 0; o < channels; ++o) kernel_sum[to + o] += kernel[from + o];
    });
    for (int64_t i = 0; i < c.group * channels; ++i) bias_sum[i % channels] += bias[i];
  });
}

}  // namespace
