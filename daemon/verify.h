/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* After an upgrade: looks at every lease of a local file system that came along, once the daemon serves: is its fd open on
 * the file that it was, and does the kernel show its lock? Logs what is not so. A slice at a time. */
#pragma once

#include <systemd/sd-event.h>

#include "lease.h"

typedef struct Verify Verify;

int verify_new(sd_event *loop, LeaseTable *leases, Verify **ret);
Verify *verify_free(Verify *verify);
