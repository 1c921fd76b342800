// Instance normalisation with LeakyReLU: oneDNN has none for channels-last volumes, and XLA passes
// over the data twice as often.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "arrays.h"

namespace {

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
  return Guarded([&] {
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
  });
}

// With h = scale * (x - mean) * inverse + bias and g = dy * LeakyReLU'(h), per sample and channel
// over its n voxels: dbias = sum g, dscale = inverse * sum g (x - mean), and
// dx = scale * inverse * (g - dbias / n - (x - mean) * inverse * dscale / n).
ffi::Error NormaliseBackward(Argument dy, Argument x, Argument scale, Argument bias, Argument mean,
                             Argument inverse_deviation, Result dx, Result dscale, Result dbias,
                             float slope) {
  return Guarded([&] {
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
  });
}

}  // namespace
