/* CULVERT_SANITIZED: 1 where this is built with AddressSanitizer, whose run-time reads /proc. */
#ifndef CULVERT_BASE_SANITIZED_H
#define CULVERT_BASE_SANITIZED_H

#if defined(__SANITIZE_ADDRESS__)
#define CULVERT_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CULVERT_SANITIZED 1
#endif
#endif
#ifndef CULVERT_SANITIZED
#define CULVERT_SANITIZED 0
#endif

#endif
