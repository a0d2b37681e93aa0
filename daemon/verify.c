/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: a lease is looked at only, never locked again and never given up, whatever is found. */
#include "verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LOG_SOURCE "upgrade"
#include "fault.h"
#include "lockspace.h"
#include "log.h"

#define VERIFY_SLICE 100 /* leases, of about 8 us each */

struct Verify {
        LeaseTable *leases;
        sd_event_source *slice;
        size_t cursor;
        uint64_t newest; /* younger leases were locked by this image */
};

static void verify_lease(const Lease *lease)
{
        const Resource *resource = lease_first_hold(lease)->resource;
        int r;

        if (lease->file.fd < 0 || !lease->local)
                return;
        r = lockfile_verify(&lease->file);
        if (r != 0)
                log_error("'%s' in lockspace '%s': %s", log_name(resource->name), log_name(resource->lockspace->path),
                          r == LOCKFILE_E_STALE ? "the kernel does not show its lock any more" :
                          r == LOCKFILE_E_KIND  ? "its fd is open on another file" :
                                                  strerror(-r));
}

static int on_verify(sd_event_source *source, uint64_t usec, void *userdata)
{
        Verify *verify = userdata;
        Lease *lease;

        (void)usec;
        for (unsigned n = 0; (lease = lease_next(verify->leases, &verify->cursor)); verify->cursor++) {
                if (n++ == VERIFY_SLICE)
                        break;
                if (lease->id <= verify->newest)
                        verify_lease(lease);
        }
        if (!lease) {
                log_info("the locks that came with the upgrade were verified");
                return 0;
        }
        /* Behind whatever is ready by now. */
        (void)sd_event_source_set_time_relative(source, 0);
        (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
        return 0;
}

int verify_new(sd_event *loop, LeaseTable *leases, Verify **ret)
{
        Verify *verify = calloc(1, sizeof(*verify));
        int r;

        if (!verify)
                return FAULT(-ENOMEM);
        verify->leases = leases;
        verify->newest = lease_newest(leases);
        r = sd_event_add_time_relative(loop, &verify->slice, CLOCK_MONOTONIC, 0, 0, on_verify, verify);
        if (r < 0) {
                free(verify);
                return FAULT(r);
        }
        *ret = verify;
        return 0;
}

Verify *verify_free(Verify *verify)
{
        if (verify)
                sd_event_source_disable_unref(verify->slice);
        free(verify);
        return NULL;
}
