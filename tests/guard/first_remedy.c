/* The first remedy against a second copy, as it was in use: a POSIX lock on a file that was truncated before. Then it
 * captures, where it may.
 *
 * first_remedy PIDFILE: prints "held" and waits until nobody can read that any more, or ends with 0 when it is
 * refused. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    char text[32];
    int fd, length;
    struct pollfd reader = {1, 0, 0};

    if (count != 2)
        return 64;
    fd = open(arguments[1], O_CREAT | O_RDWR | O_TRUNC, 0644);
    if (fd < 0)
        return 1;
    if (lockf(fd, F_TLOCK, 0) != 0)
        return 0;
    length = snprintf(text, sizeof text, "%d\n", (int)getpid());
    if (write(fd, text, length) != length)
        return 1;
    socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    puts("held");
    fflush(stdout);
    return poll(&reader, 1, -1) < 0;
}
