/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Intrusive doubly linked list. A node that is in no list has both ends NULL, so that a destructor can
 * unlink itself without asking; a head is a node linked to itself. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

typedef struct ListNode ListNode;

struct ListNode {
        ListNode *next, *prev;
};

#define list_entry(node, type, member) ((type *)((char *)(node) - offsetof(type, member)))

#define list_for_each(pos, head) for (ListNode *pos = (head)->next; pos != (head); pos = pos->next)

/* The body may unlink pos. */
#define list_for_each_safe(pos, head) \
        for (ListNode *pos = (head)->next, *pos##_next = pos->next; pos != (head); \
             pos = pos##_next, pos##_next = pos->next)

static inline void list_init(ListNode *head)
{
        head->next = head->prev = head;
}

static inline bool list_empty(const ListNode *head)
{
        return head->next == head;
}

static inline bool list_linked(const ListNode *node)
{
        return node->next != NULL;
}

static inline void list_append(ListNode *head, ListNode *node)
{
        node->prev = head->prev;
        node->next = head;
        head->prev->next = node;
        head->prev = node;
}

static inline void list_unlink(ListNode *node)
{
        if (!node->next)
                return;
        node->prev->next = node->next;
        node->next->prev = node->prev;
        node->next = node->prev = NULL;
}

/* Moves all nodes of from to the end of to; from is empty afterwards. */
static inline void list_splice(ListNode *to, ListNode *from)
{
        if (list_empty(from))
                return;
        from->next->prev = to->prev;
        to->prev->next = from->next;
        from->prev->next = to;
        to->prev = from->prev;
        list_init(from);
}
