/* Socket calls of the connect engine that need C's own macros: addresses, control messages. */
#ifndef NRAY_SOCKETS_H
#define NRAY_SOCKETS_H

#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <linux/errqueue.h>

union nray_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static inline socklen_t nray_fill(union nray_address *to, int family, const uint8_t *addr,
                                  uint16_t port)
{
    memset(to, 0, sizeof *to);
    if (family == 4) {
        to->v4.sin_family = AF_INET;
        to->v4.sin_port = htons(port);
        memcpy(&to->v4.sin_addr, addr, 4);
        return sizeof to->v4;
    }
    to->v6.sin6_family = AF_INET6;
    to->v6.sin6_port = htons(port);
    memcpy(&to->v6.sin6_addr, addr, 16);
    return sizeof to->v6;
}

static inline int nray_same(const union nray_address *a, int family, const uint8_t *addr,
                            uint16_t port)
{
    if (family == 4)
        return a->any.sa_family == AF_INET && a->v4.sin_port == htons(port) &&
               memcmp(&a->v4.sin_addr, addr, 4) == 0;
    return a->any.sa_family == AF_INET6 && a->v6.sin6_port == htons(port) &&
           memcmp(&a->v6.sin6_addr, addr, 16) == 0;
}

/* A non-blocking socket that keeps ICMP errors in its error queue; -1 and errno on failure.
 * With IPv6 an error makes no event at all unless IPV6_RECVERR is set. */
static inline int nray_socket(int family, int udp)
{
    int one = 1;
    int fd = socket(family == 4 ? AF_INET : AF_INET6,
                    (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (!udp)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); /* see nray_is_unheard */
    if (family == 4)
        setsockopt(fd, IPPROTO_IP, IP_RECVERR, &one, sizeof one);
    else
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &one, sizeof one);
    return fd;
}

/* connect(); 0 or an errno. */
static inline int nray_connect(int fd, int family, const uint8_t *addr, uint16_t port)
{
    union nray_address to;
    socklen_t size = nray_fill(&to, family, addr, port);
    return connect(fd, &to.any, size) == 0 ? 0 : errno;
}

/* Back to unconnected: gives a silent connect up, and ends an open one with RST. */
static inline int nray_disconnect(int fd)
{
    struct sockaddr to;
    memset(&to, 0, sizeof to);
    to.sa_family = AF_UNSPEC;
    return connect(fd, &to, sizeof to) == 0 ? 0 : errno;
}

static inline int nray_same_host(const union nray_address *a, const union nray_address *b)
{
    if (a->any.sa_family == AF_INET)
        return memcmp(&a->v4.sin_addr, &b->v4.sin_addr, 4) == 0;
    return memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, 16) == 0;
}

/* Whether nobody listens on an address of this machine: binding to it works beside connecting
 * sockets (which all have SO_REUSEADDR here), but not beside a listener (socket(7)). */
static inline int nray_is_unheard(const union nray_address *where)
{
    int one = 1;
    int fd = socket(where->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int is;
    if (fd < 0)
        return 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    is = bind(fd, &where->any, sizeof *where) == 0;
    close(fd);
    return is;
}

/* Whether an address is this machine's own and nobody listens on the port. */
static inline int nray_is_own_unheard(int family, const uint8_t *addr, uint16_t port)
{
    union nray_address own, peer;
    socklen_t size = nray_fill(&peer, family, addr, port);
    int fd = socket(peer.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int is;
    if (fd < 0)
        return 0;
    is = connect(fd, &peer.any, size) == 0 && getpeername(fd, &peer.any, &size) == 0 &&
         getsockname(fd, &own.any, &size) == 0 && nray_same_host(&own, &peer) &&
         nray_is_unheard(&peer);
    close(fd);
    return is;
}

/* Whom a connected socket has met: 0 for anyone else, 1 for itself, 2 for what may have been
 * another socket of this machine that connected to it at the same moment. What the peer's end is
 * called counts, not what was asked for: 0.0.0.0 is another name of this machine. If the peer is
 * gone already, what was asked for must do. */
static inline int nray_met(int fd, int udp, int family, const uint8_t *addr, uint16_t port)
{
    union nray_address own, peer;
    socklen_t size = sizeof own;
    memset(&own, 0, sizeof own);
    memset(&peer, 0, sizeof peer);
    if (getsockname(fd, &own.any, &size) != 0)
        return 0;
    size = sizeof peer;
    if (getpeername(fd, &peer.any, &size) != 0)
        return nray_is_own_unheard(family, addr, port) ? 2 : 0;
    if (!nray_same_host(&own, &peer))
        return 0;
    if (own.v4.sin_port == peer.v4.sin_port) /* at the same place in sockaddr_in6 */
        return 1;
    return udp || nray_is_unheard(&peer) ? 2 : 0;
}

static inline int nray_own_port(int fd)
{
    union nray_address own;
    socklen_t size = sizeof own;
    memset(&own, 0, sizeof own);
    getsockname(fd, &own.any, &size);
    return ntohs(own.v4.sin_port); /* at the same place in sockaddr_in6 */
}

/* Whether there is a route, but no own address to send from. TCP's connect() says EADDRNOTAVAIL
 * for that and for want of a port; UDP's for the first alone. */
static inline int nray_lacks_source(int family, const uint8_t *addr)
{
    union nray_address to;
    socklen_t size = nray_fill(&to, family, addr, 9);
    int fd = socket(to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int lacks;
    if (fd < 0)
        return 0;
    lacks = connect(fd, &to.any, size) != 0 && errno == EADDRNOTAVAIL;
    close(fd);
    return lacks;
}

static inline int nray_take_error(int fd)
{
    int code = 0;
    socklen_t size = sizeof code;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size);
    return code;
}

/* One message off the error queue. Returns 0 if the queue is empty, 1 for an ICMP error about
 * addr:port (its family 4 or 6, type and code stored), 2 for anything else. */
static inline int nray_queued_error(int fd, int family, const uint8_t *addr, uint16_t port,
                                    int *origin, uint8_t *type, uint8_t *code)
{
    union nray_address to;
    char control[512];
    char byte[8];
    struct iovec part = {byte, sizeof byte};
    struct msghdr message = {0};
    message.msg_name = &to;
    message.msg_namelen = sizeof to;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    memset(&to, 0, sizeof to);
    if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
        return 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        const struct sock_extended_err *error;
        if (!((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) ||
              (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR)))
            continue;
        error = (const struct sock_extended_err *)CMSG_DATA(c);
        if (error->ee_origin == SO_EE_ORIGIN_ICMP)
            *origin = 4;
        else if (error->ee_origin == SO_EE_ORIGIN_ICMP6)
            *origin = 6;
        else
            continue;
        *type = error->ee_type;
        *code = error->ee_code;
        return nray_same(&to, family, addr, port) ? 1 : 2;
    }
    return 2;
}

static inline int nray_watch(int epoll, int fd, uint32_t events, uint64_t tag, int add)
{
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = events;
    event.data.u64 = tag;
    return epoll_ctl(epoll, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
}

/* epoll_wait with a time limit in ns (negative: none). Falls back to whole milliseconds, rounded
 * up, on a kernel without epoll_pwait2 (before 5.11). */
static inline int nray_wait(int epoll, struct epoll_event *events, int most, int64_t limit_ns)
{
    static int coarse;
    if (!coarse) {
        struct timespec limit = {limit_ns / 1000000000, limit_ns % 1000000000};
        int count = epoll_pwait2(epoll, events, most, limit_ns < 0 ? NULL : &limit, NULL);
        if (count >= 0 || errno != ENOSYS)
            return count;
        coarse = 1;
    }
    return epoll_wait(epoll, events, most,
                      limit_ns < 0 ? -1 : (int)((limit_ns + 999999) / 1000000));
}

/* Raises the soft limit on descriptors to the hard one; returns the limit in force. */
static inline int64_t nray_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 1024;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {limit.rlim_max, limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    return limit.rlim_cur == RLIM_INFINITY ? 1 << 20 : (int64_t)limit.rlim_cur;
}

#endif
