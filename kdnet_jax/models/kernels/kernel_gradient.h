// The gradient of a kernel of three taps along the width, where there is no AVX-512: oneDNN has no
// kernel of its own for channels-last volumes there, and multiplies matrices that it first has to
// fill, in twice the time. The sums of the planes are added in order: the result does not depend on
// the number of threads.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"

namespace {

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

}  // namespace
