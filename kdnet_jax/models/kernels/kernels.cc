// The U-Net's blocks on a CPU, for XLA's foreign function interface.
//
// Convolutions are oneDNN's, but for a gradient that it has no kernel for; instance normalisation
// with LeakyReLU is written out, because oneDNN has none for channels-last volumes and XLA passes
// over the data twice as often. All arrays are float32 and channels-last, "b d h w c"; kernels are "kd kh kw c o". `kdnet_jax/models/kernels/build.py`
// compiles this file, `kdnet_jax/models/kernels/ops.py` calls it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Argument = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Dims = dnnl::memory::dims;
using Tag = dnnl::memory::format_tag;
using Desc = dnnl::memory::desc;

Dims ToDims(ffi::Span<const int64_t> span) { return Dims(span.begin(), span.end()); }

// -- Convolution ---------------------------------------------------------------------------

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

// The gradient of a kernel of three taps along the width, where there is no AVX-512: oneDNN has no
// kernel of its own for channels-last volumes there, and multiplies matrices that it first has to
// fill, in twice the time. The sums of the planes are added in order: the result does not depend on
// the number of threads.
constexpr int64_t kTaps = 3, kInputs = 4, kOutputs = 8;
// From this many output channels on oneDNN's matrices are as fast.
constexpr int64_t kManyOutputs = 64;
// kOutputs floats.
using Outputs = float __attribute__((vector_size(kOutputs * sizeof(float))));

// GCC would keep values of the next voxels in registers that the sums need.
#if defined(__GNUC__) && !defined(__clang__)
#define KEEP_REGISTERS __attribute__((noinline, optimize("no-predictive-commoning")))
#else
#define KEEP_REGISTERS
#endif

// Adds, for each tap along the width and of 4 input channels, the products with 8 output channels.
// x: rows of (width + 2) x 4; dy: rows of width x 8.
KEEP_REGISTERS void AddProducts(const float* x, const Outputs* dy, int64_t height, int64_t width,
                                Outputs (&sums)[kTaps][kInputs]) {
  Outputs held[kTaps][kInputs] = {};
  for (int64_t h = 0; h < height; ++h) {
    const float* row = x + h * (width + kTaps - 1) * kInputs;
    for (int64_t w = 0; w < width; ++w) {
      const Outputs gradient = dy[h * width + w];
#pragma GCC unroll 3
      for (int64_t tap = 0; tap < kTaps; ++tap) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < kInputs; ++i) {
          held[tap][i] += gradient * row[(w + tap) * kInputs + i];
        }
      }
    }
  }
  std::copy_n(&held[0][0], kTaps * kInputs, &sums[0][0]);
}

struct Block {
  int64_t first, count;
};

Block BlockOf(int64_t index, int64_t size, int64_t total) {
  return {index * size, std::min(size, total - index * size)};
}

// What a plane of the output adds to the gradients of the kernel "kd kh 3 c o" and of the biases,
// one after the other. Each thread has one: it holds the blocks of channels that it works on.
class PlaneGradient {
 public:
  // x: "b d h w c", dy: "b d h w o".
  PlaneGradient(const Dims& x_dims, const Dims& k, const float* x, const float* dy)
      : x_(x), dy_(dy), depth_(x_dims[1]), height_(x_dims[2]), width_(x_dims[3]), kd_(k[0]),
        kh_(k[1]), inputs_(k[3]), outputs_(k[4]), row_((width_ + kTaps - 1) * kInputs),
        gradient_(height_ * width_), plane_((height_ + kh_ - 1) * row_) {}

  void Add(int64_t plane, float* sums) {
    const float* dy = dy_ + plane * height_ * width_ * outputs_;
    float* biases = sums + kd_ * kh_ * kTaps * inputs_ * outputs_;
    for (int64_t voxel = 0; voxel < height_ * width_; ++voxel) {
      for (int64_t o = 0; o < outputs_; ++o) biases[o] += dy[voxel * outputs_ + o];
    }
    for (int64_t block = 0; block * kOutputs < outputs_; ++block) {
      const Block outputs = BlockOf(block, kOutputs, outputs_);
      PackOutputs(dy, outputs);
      for (int64_t kd = 0; kd < kd_; ++kd) {
        const int64_t d = plane % depth_ + kd - kd_ / 2;
        if (d < 0 || d >= depth_) continue;
        const float* x = x_ + (plane + kd - kd_ / 2) * height_ * width_ * inputs_;
        AddPlaneOfTaps(x, outputs, sums + kd * kh_ * kTaps * inputs_ * outputs_);
      }
    }
  }

 private:
  void AddPlaneOfTaps(const float* x, Block outputs, float* to) {
    for (int64_t block = 0; block * kInputs < inputs_; ++block) {
      const Block inputs = BlockOf(block, kInputs, inputs_);
      PackInputs(x, inputs);
      for (int64_t kh = 0; kh < kh_; ++kh) {
        Outputs sums[kTaps][kInputs];
        AddProducts(&plane_[kh * row_], gradient_.data(), height_, width_, sums);
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          for (int64_t i = 0; i < inputs.count; ++i) {
            const int64_t at = (kh * kTaps + tap) * inputs_ + inputs.first + i;
            for (int64_t o = 0; o < outputs.count; ++o) {
              to[at * outputs_ + outputs.first + o] += sums[tap][i][o];
            }
          }
        }
      }
    }
  }

  // Local names: the compiler cannot know that members stay as they are while floats are written.
  void PackOutputs(const float* dy, Block outputs) {
    const int64_t voxels = height_ * width_, step = outputs_, count = outputs.count;
    const float* from = dy + outputs.first;
    float* to = reinterpret_cast<float*>(gradient_.data());
    for (int64_t voxel = 0; voxel < voxels; ++voxel, from += step, to += kOutputs) {
      for (int64_t o = 0; o < kOutputs; ++o) to[o] = o < count ? from[o] : 0.0f;
    }
  }

  // With the zeros around that the taps reach.
  void PackInputs(const float* x, Block inputs) {
    std::fill(plane_.begin(), plane_.end(), 0.0f);
    const int64_t height = height_, width = width_, step = inputs_, count = inputs.count;
    const float* from = x + inputs.first;
    for (int64_t h = 0; h < height; ++h) {
      float* to = &plane_[(h + kh_ / 2) * row_ + kTaps / 2 * kInputs];
      for (int64_t w = 0; w < width; ++w, from += step, to += kInputs) {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
      }
    }
  }

  const float *x_, *dy_;
  int64_t depth_, height_, width_, kd_, kh_, inputs_, outputs_, row_;
  std::vector<Outputs> gradient_;  // h w 8
  std::vector<float> plane_;       // (h + kh - 1) (w + 2) 4
};

void SumKernelGradient(const Dims& x_dims, const Dims& k, const float* x, const float* dy,
                       float* dkernel, float* dbias) {
  const int64_t planes = x_dims[0] * x_dims[1], weights = k[0] * k[1] * kTaps * k[3] * k[4];
  const int64_t length = weights + k[4];
  std::vector<float> partial(planes * length, 0.0f);
#pragma omp parallel
  {
    PlaneGradient gradient(x_dims, k, x, dy);
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < planes; ++plane) gradient.Add(plane, &partial[plane * length]);
  }
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < length; ++j) {
    float sum = 0;
    for (int64_t plane = 0; plane < planes; ++plane) sum += partial[plane * length + j];
    (j < weights ? dkernel[j] : dbias[j - weights]) = sum;
  }
}

template <typename Body>
ffi::Error Guarded(Body body) {
  std::lock_guard<std::mutex> lock(convolution_mutex);
  try {
    body();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN convolution: ") + error.what());
  }
}

Type Factors(bool bfloat16) { return bfloat16 ? Type::bf16 : Type::f32; }

ffi::Error Convolve(Argument x, Argument kernel, Argument bias, Result y, bool bfloat16) {
  return Guarded([&] {
    const Dims x_dims = ToDims(x.dimensions()), k = ToDims(kernel.dimensions());
    Forward(FindConvolution(x_dims, k, Factors(bfloat16)), x.typed_data(), kernel.typed_data(),
            bias.typed_data(), y->typed_data());
  });
}

ffi::Error ConvolveBackwardInput(Argument dy, Argument kernel, Result dx, bool bfloat16) {
  return Guarded([&] {
    const Dims k = ToDims(kernel.dimensions());
    const std::vector<float> flipped = Flipped(kernel.typed_data(), k), no_bias(k[3], 0.0f);
    const Dims flipped_dims{k[0], k[1], k[2], k[4], k[3]};
    Forward(FindConvolution(ToDims(dy.dimensions()), flipped_dims, Factors(bfloat16)),
            dy.typed_data(), flipped.data(), no_bias.data(), dx->typed_data());
  });
}

ffi::Error ConvolveBackwardKernel(Argument x, Argument dy, Result dkernel, Result dbias) {
  return Guarded([&] {
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

// -- Instance normalisation and LeakyReLU ----------------------------------------------------

// Plain loops over one row, apart so that the compiler sees that nothing overlaps (but `dx` may be
// `dy`), and turns them into vector instructions.

void AddDifferences(const float* x, const float* origin, int64_t length, float* sum,
                    float* sum_of_squares) {
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) {
    const float difference = x[j] - origin[j];
    sum[j] += difference;
    sum_of_squares[j] += difference * difference;
  }
}

// The constants of a row's channels.
struct Constants {
  const float *mean, *factor, *bias;
};

void NormaliseRow(const float* x, Constants constants, float slope, int64_t length, float* y) {
  const auto [mean, factor, bias] = constants;
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) {
    const float h = (x[j] - mean[j]) * factor[j] + bias[j];
    y[j] = h * (h > 0 ? 1.0f : slope);
  }
}

void AddGradients(const float* dy, const float* x, Constants constants, float slope,
                  int64_t length, float* sum, float* sum_with_difference) {
  const auto [mean, factor, bias] = constants;
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) {
    const float difference = x[j] - mean[j];
    const float g = dy[j] * (difference * factor[j] + bias[j] > 0 ? 1.0f : slope);
    sum[j] += g;
    sum_with_difference[j] += g * difference;
  }
}

void BackwardRow(const float* dy, const float* x, Constants constants, const float* average,
                 const float* tilt, float slope, int64_t length, float* dx) {
  const auto [mean, factor, bias] = constants;
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) {
    const float difference = x[j] - mean[j];
    const float g = dy[j] * (difference * factor[j] + bias[j] > 0 ? 1.0f : slope);
    dx[j] = factor[j] * (g - average[j] - difference * tilt[j]);
  }
}

// A sample is a row-major table of voxels x channels. Channels are often fewer than a vector
// register holds, so rows of several voxels are worked through at once, with the constants of the
// channels repeated to match.
constexpr int64_t kRowFloats = 128;
// The table is cut into chunks of fixed size, whose sums are added in order: the result does not
// depend on the number of threads.
constexpr int64_t kChunkVoxels = 4096;

int64_t VoxelsPerRow(int64_t channels) { return std::max<int64_t>(1, kRowFloats / channels); }

std::vector<float> Repeat(const std::vector<float>& values, int64_t times) {
  std::vector<float> row;
  for (int64_t i = 0; i < times; ++i) row.insert(row.end(), values.begin(), values.end());
  return row;
}

struct Shape {
  int64_t samples, voxels, channels, floats, chunks;

  explicit Shape(Argument x)
      : samples(x.dimensions()[0]),
        voxels(x.dimensions()[1] * x.dimensions()[2] * x.dimensions()[3]),
        channels(x.dimensions()[4]),
        floats(voxels * channels),
        chunks((voxels + kChunkVoxels - 1) / kChunkVoxels) {}
};

// Calls row(offset in the whole array, length), both in floats, over a chunk of a sample.
template <typename Row>
void ForRows(const Shape& shape, int64_t sample, int64_t chunk, Row row) {
  const int64_t step = VoxelsPerRow(shape.channels), first = chunk * kChunkVoxels;
  const int64_t last = std::min(shape.voxels, first + kChunkVoxels);
  for (int64_t voxel = first; voxel < last; voxel += step) {
    row(sample * shape.floats + voxel * shape.channels,
        std::min(step, last - voxel) * shape.channels);
  }
}

// Two sums per channel and sample, from a function that adds a row to two arrays of partial sums.
template <typename AddRow>
std::vector<double> Sums(const Shape& shape, AddRow add_row) {
  const int64_t channels = shape.channels, row_floats = VoxelsPerRow(channels) * channels;
  std::vector<double> partial(shape.samples * shape.chunks * 2 * channels, 0.0);
#pragma omp parallel for schedule(static)
  for (int64_t job = 0; job < shape.samples * shape.chunks; ++job) {
    const int64_t sample = job / shape.chunks, chunk = job % shape.chunks;
    std::vector<float> first(row_floats, 0.0f), second(row_floats, 0.0f);
    ForRows(shape, sample, chunk, [&](int64_t offset, int64_t length) {
      add_row(sample, offset, length, first.data(), second.data());
    });
    double* out = &partial[job * 2 * channels];
    for (int64_t j = 0; j < row_floats; ++j) {
      out[j % channels] += first[j];
      out[channels + j % channels] += second[j];
    }
  }
  std::vector<double> total(shape.samples * 2 * channels, 0.0);
  for (int64_t job = 0; job < shape.samples * shape.chunks; ++job) {
    double* out = &total[job / shape.chunks * 2 * channels];
    for (int64_t j = 0; j < 2 * channels; ++j) out[j] += partial[job * 2 * channels + j];
  }
  return total;
}

// Per sample a row of each constant, ready for `ForRows`.
using Rows = std::vector<std::vector<float>>;

template <typename Value>
Rows MakeRows(const Shape& shape, Value value) {
  Rows rows;
  for (int64_t sample = 0; sample < shape.samples; ++sample) {
    std::vector<float> values(shape.channels);
    for (int64_t c = 0; c < shape.channels; ++c) values[c] = value(sample, c);
    rows.push_back(Repeat(values, VoxelsPerRow(shape.channels)));
  }
  return rows;
}

template <typename Row>
void ForAllRows(const Shape& shape, Row row) {
#pragma omp parallel for schedule(static)
  for (int64_t job = 0; job < shape.samples * shape.chunks; ++job) {
    const int64_t sample = job / shape.chunks, chunk = job % shape.chunks;
    ForRows(shape, sample, chunk,
            [&](int64_t offset, int64_t length) { row(sample, offset, length); });
  }
}

// What the rows of each sample need, repeated to the length of a row.
struct Affine {
  Rows mean, factor, bias;

  Affine(const Shape& shape, const float* mu, const float* inverse, const float* gamma,
         const float* beta)
      : mean(MakeRows(shape, [&](int64_t b, int64_t c) { return mu[b * shape.channels + c]; })),
        factor(MakeRows(shape, [&](int64_t b, int64_t c) {
          return gamma[c] * inverse[b * shape.channels + c];
        })),
        bias(MakeRows(shape, [&](int64_t, int64_t c) { return beta[c]; })) {}

  Constants Of(int64_t sample) const {
    return {mean[sample].data(), factor[sample].data(), bias[sample].data()};
  }
};

ffi::Error Normalise(Argument x, Argument scale, Argument bias, Result y, Result mean,
                     Result inverse_deviation, float epsilon, float slope) {
  const Shape shape(x);
  const int64_t channels = shape.channels;
  const float* in = x.typed_data();
  float *mu = mean->typed_data(), *inverse = inverse_deviation->typed_data();
  // Sums of differences from the first voxel: no cancellation where the mean is large.
  const Rows origin =
      MakeRows(shape, [&](int64_t b, int64_t c) { return in[b * shape.floats + c]; });
  const std::vector<double> sums =
      Sums(shape, [&](int64_t b, int64_t offset, int64_t length, float* first, float* second) {
        AddDifferences(in + offset, origin[b].data(), length, first, second);
      });
  for (int64_t b = 0; b < shape.samples; ++b) {
    for (int64_t c = 0; c < channels; ++c) {
      const double average = sums[b * 2 * channels + c] / shape.voxels;
      const double square = sums[(b * 2 + 1) * channels + c] / shape.voxels;
      const double variance = std::max(square - average * average, 0.0);
      mu[b * channels + c] = static_cast<float>(in[b * shape.floats + c] + average);
      inverse[b * channels + c] = static_cast<float>(1.0 / std::sqrt(variance + epsilon));
    }
  }
  const Affine affine(shape, mu, inverse, scale.typed_data(), bias.typed_data());
  float* out = y->typed_data();
  ForAllRows(shape, [&](int64_t b, int64_t offset, int64_t length) {
    NormaliseRow(in + offset, affine.Of(b), slope, length, out + offset);
  });
  return ffi::Error::Success();
}

// With h = scale * (x - mean) * inverse + bias and g = dy * LeakyReLU'(h), per sample and channel
// over its n voxels: dbias = sum g, dscale = inverse * sum g (x - mean), and
// dx = scale * inverse * (g - dbias / n - (x - mean) * inverse * dscale / n).
ffi::Error NormaliseBackward(Argument dy, Argument x, Argument scale, Argument bias, Argument mean,
                             Argument inverse_deviation, Result dx, Result dscale, Result dbias,
                             float slope) {
  const Shape shape(x);
  const int64_t channels = shape.channels;
  const float *in = x.typed_data(), *gradient = dy.typed_data(),
              *inverse = inverse_deviation.typed_data();
  const Affine affine(shape, mean.typed_data(), inverse, scale.typed_data(), bias.typed_data());
  const std::vector<double> sums =
      Sums(shape, [&](int64_t b, int64_t offset, int64_t length, float* first, float* second) {
        AddGradients(gradient + offset, in + offset, affine.Of(b), slope, length, first, second);
      });
  float *ds = dscale->typed_data(), *db = dbias->typed_data(), *out = dx->typed_data();
  for (int64_t i = 0; i < shape.samples * channels; ++i) {
    const int64_t b = i / channels, c = i % channels;
    db[i] = static_cast<float>(sums[b * 2 * channels + c]);
    ds[i] = static_cast<float>(sums[(b * 2 + 1) * channels + c] * inverse[i]);
  }
  const Rows average = MakeRows(
      shape, [&](int64_t b, int64_t c) { return db[b * channels + c] / shape.voxels; });
  const Rows tilt = MakeRows(shape, [&](int64_t b, int64_t c) {
    return ds[b * channels + c] * inverse[b * channels + c] / shape.voxels;
  });
  ForAllRows(shape, [&](int64_t b, int64_t offset, int64_t length) {
    BackwardRow(gradient + offset, in + offset, affine.Of(b), average[b].data(), tilt[b].data(),
                slope, length, out + offset);
  });
  return ffi::Error::Success();
}

}  // namespace

extern "C" int KdnetHasBfloat16() { return Has(dnnl::cpu_isa::avx512_core_bf16) ? 1 : 0; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    KdnetConvolve, Convolve,
    ffi::Ffi::Bind()
        .Arg<Argument>()
        .Arg<Argument>()
        .Arg<Argument>()
        .Ret<ffi::Buffer<ffi::F32>>()
        .Attr<bool>("bfloat16"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetConvolveBackwardInput, ConvolveBackwardInput,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("bfloat16"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetConvolveBackwardKernel, ConvolveBackwardKernel,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetNormalise, Normalise,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("epsilon")
                                  .Attr<float>("slope"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdnetNormaliseBackward, NormaliseBackward,
                              ffi::Ffi::Bind()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Arg<Argument>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("slope"));
