/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vm SOCKET NAME UUID [-s] [-c] [-l LOCKSPACE] [-p PID] [-k] RESOURCE...
 *
 * A stand-in for a VM: a process that registers itself, acquires its resources (-s shared, -c AUTOCREATE), restricts its
 * connection as QEMU's is restricted, says "granted" and lives until its stdin closes. "refused: MESSAGE": it ends with 75.
 *
 * -p PID registers that process instead (0: none), as libvirtd does for its guests.
 * -k ends the process after "granted" and leaves a child that keeps the connection, like qemu -daemonize.
 */
#include <ctype.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "exit_codes.h"

static virtlock_string string_of(const char *text)
{
        return (virtlock_string){ .virtlock_string_len = (u_int)strlen(text), .virtlock_string_val = (char *)(uintptr_t)text };
}

static bool parse_uuid(const char *text, char uuid[VIRTLOCK_UUID_LEN])
{
        char digits[3] = "";

        for (int i = 0; i < VIRTLOCK_UUID_LEN; i++) {
                if (*text == '-')
                        text++;
                if (!isxdigit((unsigned char)text[0]) || !isxdigit((unsigned char)text[1]))
                        return false;
                memcpy(digits, text, 2);
                uuid[i] = (char)strtoul(digits, NULL, 16);
                text += 2;
        }
        return *text == '\0';
}

/* Ends the program when the call was not granted. */
static void call(Client *client, int32_t procedure, xdrproc_t proc, const void *args)
{
        int r = client_call(client, VIRTLOCK_PROGRAM, VIRTLOCK_VERSION, procedure, proc, args, NULL, NULL);

        if (r == 0)
                return;
        if (r > 0)
                printf("refused: %s\n", client_error_message(client));
        else
                fprintf(stderr, "vm: procedure %d: %s\n", procedure, strerror(-r));
        fflush(stdout);
        exit(r > 0 ? EXIT_BUSY : EXIT_UNAVAILABLE);
}

static int usage(void)
{
        fprintf(stderr, "Usage: vm SOCKET NAME UUID [-s] [-c] [-l LOCKSPACE] [-p PID] [-k] RESOURCE...\n");
        return EXIT_USAGE;
}

int main(int argc, char **argv)
{
        virtlock_register owner = { .id = 1, .pid = (u_int)getpid() };
        virtlock_resource resource = { .path = string_of("") };
        virtlock_restrict restriction = { 0 };
        bool keep = false;
        Client *client;
        char byte;
        int c, r;

        while ((c = getopt(argc, argv, "scl:p:k")) != -1) {
                switch (c) {
                case 's':
                        resource.flags |= VIRTLOCK_ACQUIRE_SHARED;
                        break;
                case 'c':
                        resource.flags |= VIRTLOCK_ACQUIRE_AUTOCREATE;
                        break;
                case 'l':
                        resource.path = string_of(optarg);
                        break;
                case 'p':
                        owner.pid = (u_int)strtoul(optarg, NULL, 10);
                        break;
                case 'k':
                        keep = true;
                        break;
                default:
                        return usage();
                }
        }
        argv += optind;
        argc -= optind;
        if (argc < 3 || !parse_uuid(argv[2], owner.uuid))
                return usage();
        owner.name = string_of(argv[1]);
        r = client_new(argv[0], CLIENT_TIMEOUT_MSEC, &client);
        if (r < 0) {
                fprintf(stderr, "vm: %s: %s\n", argv[0], strerror(-r));
                return EXIT_UNAVAILABLE;
        }
        call(client, VIRTLOCK_REGISTER, (xdrproc_t)xdr_virtlock_register, &owner);
        if (resource.path.virtlock_string_len > 0) {
                virtlock_create_lockspace lockspace = { .path = resource.path };

                call(client, VIRTLOCK_CREATE_LOCKSPACE, (xdrproc_t)xdr_virtlock_create_lockspace, &lockspace);
        }
        for (int i = 3; i < argc; i++) {
                resource.name = string_of(argv[i]);
                call(client, VIRTLOCK_ACQUIRE_RESOURCE, (xdrproc_t)xdr_virtlock_resource, &resource);
        }
        call(client, VIRTLOCK_RESTRICT, (xdrproc_t)xdr_virtlock_restrict, &restriction);
        puts("granted");
        fflush(stdout);
        if (keep && fork() > 0)
                _exit(EXIT_OK);
        while (read(STDIN_FILENO, &byte, 1) > 0)
                ;
        client_free(client);
        return EXIT_OK;
}
