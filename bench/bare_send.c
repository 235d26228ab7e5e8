/* What sending costs by itself: prepared frames out of an AF_PACKET socket, as fast as they go.
 *
 * bare_send INTERFACE TARGET-MAC SOURCE-MAC SECONDS BATCH mmsg|mmsg-bypass|ring
 *
 * mmsg: sendmmsg of BATCH frames a call. mmsg-bypass: the same with PACKET_QDISC_BYPASS. ring: a
 * PACKET_TX_RING of 256-byte frames, send() for each BATCH. The frames are SYNs of 58 bytes to
 * 198.18.0.0/17, as the raw engine's; checksums are left out, for nobody looks at them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

enum { SIZE = 58, MOST = 1024, RING_FRAME = 256, RING_FRAMES = 4096, RING_BLOCK = 65536 };

static uint8_t frames[MOST][SIZE + 6];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void mac(const char *text, uint8_t *out)
{
    unsigned b[6];
    if (sscanf(text, "%x:%x:%x:%x:%x:%x", b, b + 1, b + 2, b + 3, b + 4, b + 5) != 6)
        exit(2);
    for (int i = 0; i < 6; i++)
        out[i] = (uint8_t)b[i];
}

static void prepare(const char *to, const char *from)
{
    static const uint8_t head[] = {0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 19, 255, 1};
    for (int i = 0; i < MOST; i++) {
        uint8_t *f = frames[i];
        mac(to, f);
        mac(from, f + 6);
        f[12] = 8;
        memcpy(f + 14, head, sizeof head);
        f[30] = 198, f[31] = 18, f[32] = (uint8_t)(i * 37 & 127), f[33] = (uint8_t)(i * 101);
        f[34] = 0xf0, f[35] = (uint8_t)i, f[37] = 80, f[46] = 0x60, f[47] = 2;
    }
}

int main(int argc, char **argv)
{
    static struct mmsghdr messages[MOST];
    static struct iovec parts[MOST];
    struct sockaddr_ll own = {.sll_family = AF_PACKET};
    int batch, one = 1, size = 4 << 20, fd;
    double end;
    if (argc != 7)
        return 2;
    batch = atoi(argv[5]);
    if (batch < 1 || batch > MOST)
        return 2;
    prepare(argv[2], argv[3]);
    fd = socket(AF_PACKET, SOCK_RAW, 0);
    own.sll_ifindex = (int)if_nametoindex(argv[1]);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    end = now() + atof(argv[4]);
    if (strncmp(argv[6], "mmsg", 4) == 0) {
        if (strcmp(argv[6], "mmsg-bypass") == 0 &&
            setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) != 0)
            return perror("PACKET_QDISC_BYPASS"), 1;
        if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof own) != 0)
            return perror("bind"), 1;
        for (int i = 0; i < MOST; i++) {
            parts[i] = (struct iovec){frames[i], SIZE};
            messages[i].msg_hdr.msg_iov = &parts[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        for (int at = 0; now() < end; at = (at + batch) % (MOST - batch + 1))
            sendmmsg(fd, messages + at, (unsigned)batch, MSG_DONTWAIT);
        return 0;
    }
    struct tpacket_req request = {RING_BLOCK, RING_FRAMES / (RING_BLOCK / RING_FRAME), RING_FRAME,
                                  RING_FRAMES};
    int version = TPACKET_V2, at = 0;
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) != 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &request, sizeof request) != 0)
        return perror("PACKET_TX_RING"), 1;
    uint8_t *ring = mmap(NULL, (size_t)RING_FRAME * RING_FRAMES, PROT_READ | PROT_WRITE, MAP_SHARED,
                         fd, 0);
    if (ring == MAP_FAILED || bind(fd, (struct sockaddr *)&own, sizeof own) != 0)
        return perror("ring"), 1;
    while (now() < end) {
        for (int i = 0; i < batch; i++) {
            struct tpacket2_hdr *h = (struct tpacket2_hdr *)(ring + (size_t)at * RING_FRAME);
            while (__atomic_load_n(&h->tp_status, __ATOMIC_ACQUIRE) != TP_STATUS_AVAILABLE)
                send(fd, NULL, 0, 0);
            memcpy((uint8_t *)h + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll),
                   frames[(at * 7 + i) % MOST], SIZE);
            h->tp_len = SIZE;
            __atomic_store_n(&h->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
            at = (at + 1) % RING_FRAMES;
        }
        send(fd, NULL, 0, MSG_DONTWAIT);
    }
    return 0;
}
