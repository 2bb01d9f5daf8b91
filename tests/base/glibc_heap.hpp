#pragma once
// GLINT_GLIBC_HEAP: whether malloc is glibc's own, which can tell what it holds; a sanitizer's cannot.

#include <cstdlib>

#ifdef __has_feature  // Clang
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define GLINT_GLIBC_HEAP 0
#endif
#endif
#ifndef GLINT_GLIBC_HEAP
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define GLINT_GLIBC_HEAP 1
#else
#define GLINT_GLIBC_HEAP 0
#endif
#endif
