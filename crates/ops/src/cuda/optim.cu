// In-place optimizer updates, one thread per value; formulas as in src/kernels/optim.rs.

typedef unsigned long long Count;

__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return sqrt(x); }

#define UPDATES(T, NAME)                                                                                 \
  extern "C" __global__ void sgd_##NAME(T *p, const T *g, T *m, Count n, T lr, T momentum, T decay,      \
                                        int nesterov, int first) {                                       \
    Count i = (Count)blockIdx.x * blockDim.x + threadIdx.x;                                              \
    if (i >= n) return;                                                                                  \
    T d = g[i] + decay * p[i];                                                                           \
    T v = first ? d : momentum * m[i] + d;                                                               \
    m[i] = v;                                                                                            \
    p[i] -= lr * (nesterov ? d + momentum * v : v);                                                      \
  }                                                                                                      \
  extern "C" __global__ void adam_##NAME(T *p, const T *g, T *m, T *v, Count n, T lr, T keep, T take,    \
                                         T keep2, T take2, T over, T eps, T decay, T shrink) {           \
    Count i = (Count)blockIdx.x * blockDim.x + threadIdx.x;                                              \
    if (i >= n) return;                                                                                  \
    T d = g[i] + decay * p[i];                                                                           \
    T a = keep * m[i] + take * d;                                                                        \
    T b = keep2 * v[i] + take2 * d * d;                                                                  \
    m[i] = a;                                                                                            \
    v[i] = b;                                                                                            \
    p[i] = shrink * p[i] - lr * a / (root(b) * over + eps);                                              \
  }

UPDATES(float, f32)
UPDATES(double, f64)
