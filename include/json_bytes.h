/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The one encoding of bytes in JSON, in the state and in what lockd-admin prints: a string, or, when they are not UTF-8
 * text, an array of numbers, as in the journal's JSON. */
#pragma once

#include <json-c/json.h>
#include <stddef.h>

#include "utf8.h"

/* NULL: out of memory. */
static inline json_object *json_from_bytes(const char *bytes, size_t len)
{
        json_object *array;

        if (utf8_is_text(bytes, len))
                return json_object_new_string_len(len > 0 ? bytes : "", (int)len);
        array = json_object_new_array_ext((int)len);
        for (size_t i = 0; array && i < len; i++)
                if (json_object_array_add(array, json_object_new_int((unsigned char)bytes[i])) < 0) {
                        json_object_put(array);
                        return NULL;
                }
        return array;
}
