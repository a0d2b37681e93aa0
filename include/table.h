/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A hash table whose nodes lie in the elements, for what there are many of: a node has 16 bytes, uthash's has 56. A zeroed
 * Table is an empty one. It grows when it can: without memory its chains get longer. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define TABLE_BUCKETS_MIN 64U
#define TABLE_CHAIN 2U /* nodes a bucket, before it grows */

typedef struct TableNode TableNode;

struct TableNode {
        TableNode *next;
        uint32_t hash;
};

typedef struct Table {
        TableNode **buckets;
        size_t n_buckets; /* a power of 2 */
        size_t count;
} Table;

#define table_entry(node, type, member) ((type *)((char *)(node) - offsetof(type, member)))

static inline TableNode *table_skip(TableNode *node, uint32_t hash)
{
        while (node && node->hash != hash)
                node = node->next;
        return node;
}

static inline TableNode *table_first(const Table *table, uint32_t hash)
{
        return table->count > 0 ? table_skip(table->buckets[hash & (table->n_buckets - 1)], hash) : NULL;
}

/* The nodes of one hash, a variable: which of them is meant, the body finds out. */
#define table_for_each(pos, table, hash) \
        for (TableNode *pos = table_first((table), (hash)); pos; pos = table_skip(pos->next, (hash)))

static inline void table_grow(Table *table)
{
        size_t n = table->n_buckets ? 2 * table->n_buckets : TABLE_BUCKETS_MIN;
        TableNode **buckets = calloc(n, sizeof(*buckets));

        if (!buckets)
                return;
        for (size_t i = 0; i < table->n_buckets; i++)
                for (TableNode *node = table->buckets[i], *next; node; node = next) {
                        next = node->next;
                        node->next = buckets[node->hash & (n - 1)];
                        buckets[node->hash & (n - 1)] = node;
                }
        free(table->buckets);
        table->buckets = buckets;
        table->n_buckets = n;
}

/* False: out of memory. */
static inline bool table_add(Table *table, TableNode *node, uint32_t hash)
{
        if (table->count >= TABLE_CHAIN * table->n_buckets)
                table_grow(table);
        if (!table->buckets)
                return false;
        node->hash = hash;
        node->next = table->buckets[hash & (table->n_buckets - 1)];
        table->buckets[hash & (table->n_buckets - 1)] = node;
        table->count++;
        return true;
}

static inline void table_remove(Table *table, TableNode *node)
{
        TableNode **link = &table->buckets[node->hash & (table->n_buckets - 1)];

        while (*link != node)
                link = &(*link)->next;
        *link = node->next;
        table->count--;
}

static inline void table_done(Table *table)
{
        free(table->buckets);
        *table = (Table){ .buckets = NULL };
}
