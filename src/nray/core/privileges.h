/* What this thread may do beyond its user: giving it up for good.
 *
 * Capabilities belong to threads, and new threads inherit them: give up before any is started.
 * See capabilities(7), prctl(2). */
#ifndef NRAY_PRIVILEGES_H
#define NRAY_PRIVILEGES_H

#include <errno.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Gives up all capabilities but those of `keep`, in every set, and sets no_new_privs, so that no
 * program gets any back. Ambient and inheritable are emptied. 0, or -1 with errno. */
static int privileges_keep(uint64_t keep)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    /* Without CAP_SETPCAP the bounding set stays; no_new_privs has made it harmless. */
    for (int cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
            return -1;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
        return -1;
    if (syscall(SYS_capget, &header, data) < 0)
        return -1;
    for (int half = 0; half < 2; half++) {
        data[half].permitted &= (uint32_t)(keep >> 32 * half);
        data[half].effective &= (uint32_t)(keep >> 32 * half);
        data[half].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) < 0 ? -1 : 0;
}

#endif
