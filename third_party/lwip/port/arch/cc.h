/* What lwIP wants to know about the compiler and the platform: any POSIX system with gcc or clang.
 */
#ifndef CULVERT_LWIP_ARCH_CC_H
#define CULVERT_LWIP_ARCH_CC_H

#include <endian.h> /* BYTE_ORDER */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h> /* what MEM_CUSTOM_FREE is */
#include <sys/time.h>

#define LWIP_TIMEVAL_PRIVATE  0
#define LWIP_ERRNO_STDINCLUDE 1
#define LWIP_PLATFORM_DIAG(x) /* lwIP prints nothing: the log is core's */

#ifdef __cplusplus
extern "C" {
#endif
uint32_t culvert_lwip_random(void);
void culvert_lwip_assert(const char *message, const char *file, int line);
void *culvert_lwip_malloc(size_t size);
#ifdef __cplusplus
}
#endif

#define LWIP_RAND() culvert_lwip_random()

#define LWIP_PLATFORM_ASSERT(message) culvert_lwip_assert(message, __FILE__, __LINE__)

#endif
