/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* uthash, told never to end the process: its default answer to a failed malloc is exit(), which would
 * release every lock of the host. After HASH_ADD* ask hash_added(): a failed add leaves the element out. */
#pragma once

#define HASH_NONFATAL_OOM 1
#define uthash_fatal(msg) ((void)(msg))
#include <uthash.h>

#define hash_added(element) ((element)->hh.tbl != NULL)
