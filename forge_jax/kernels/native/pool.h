// One pool of threads for all kernels of a process, as many as it may run on. A call that finds the pool busy does its
// work alone, so calls may come from any number of threads.
#pragma once

#include <cstdint>

namespace forge {

// How many threads work on a call, with the one that makes it.
int threads();

using Work = void (*)(void* what, int64_t from, int64_t to);

// Calls work(what, from, to) for consecutive parts of 0..count, in up to `parts` pieces on any threads; returns when
// all of it is done.
void parallel(int64_t count, int64_t parts, Work work, void* what);

template <class Body>
void parallel(int64_t count, int64_t parts, Body& body) {
  parallel(count, parts, [](void* what, int64_t from, int64_t to) { (*static_cast<Body*>(what))(from, to); }, &body);
}

}  // namespace forge
