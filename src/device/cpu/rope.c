/* rope.c - rotary embedding in the half-split form, and its transpose. */
#include "device/cpu/rows.h"

/* cos and sin of one position. */
typedef struct angles {
    const void *cos, *sin;
} angles;

/* One head's row; both halves are read before either is written. */
INLINE void rotate(bool bf, bool angles_bf, const void *x, angles a, bool transpose, void *y, int64_t half) {
    EACH_VECTOR(j, 0, half, {
        vf x1 = get_part(bf, x, j, left, 0), x2 = get_part(bf, x, half + j, left, 0);
        vf c1 = get_part(angles_bf, a.cos, j, left, 0), c2 = get_part(angles_bf, a.cos, half + j, left, 0);
        vf s1 = get_part(angles_bf, a.sin, j, left, 0), s2 = get_part(angles_bf, a.sin, half + j, left, 0);
        vf y1 = transpose ? x1 * c1 + x2 * s2 : x1 * c1 - x2 * s1;
        vf y2 = transpose ? x2 * c2 - x1 * s1 : x2 * c2 + x1 * s2;
        put_part(bf, y, j, left, y1);
        put_part(bf, y, half + j, left, y2);
    });
}

/* All heads of position i = b*S + s. */
INLINE void rope_row(bool bf, int64_t i, const tensor *x, const tensor *cos, const tensor *sin, bool transpose,
                     const tensor *y) {
    const int64_t b = i / x->dim[1], s = i % x->dim[1], H = x->dim[2], half = x->dim[3] / 2;
    const bool angles_bf = cos->type == DT_BF16;
    const int64_t ca = cos->rank == 3 ? b * cos->stride[0] + s * cos->stride[1] : s * cos->stride[0];
    const int64_t sa = sin->rank == 3 ? b * sin->stride[0] + s * sin->stride[1] : s * sin->stride[0];
    angles a = {elem_at(angles_bf, cos->data, ca), elem_at(angles_bf, sin->data, sa)};
    for (int64_t h = 0; h < H; h++) {
        const void *from = elem_at(bf, x->data, b * x->stride[0] + s * x->stride[1] + h * x->stride[2]);
        void *to = elem_of(bf, y->data, b * y->stride[0] + s * y->stride[1] + h * y->stride[2]);
        if (angles_bf)
            rotate(bf, true, from, a, transpose, to, half);
        else
            rotate(bf, false, from, a, transpose, to, half);
    }
}

void kern_rope(const tensor *x, const tensor *cos, const tensor *sin, bool transpose, const tensor *y) {
    ASSERT(x->rank == 4 && y->rank == 4 && x->type == y->type && x->dim[3] % 2 == 0);
    ASSERT(x->stride[3] == 1 && y->stride[3] == 1);
    ASSERT(cos->type == sin->type && (cos->type == DT_F32 || cos->type == DT_BF16));
    const tensor *both[] = {cos, sin};
    for (int i = 0; i < 2; i++) {
        const int last = both[i]->rank - 1;
        ASSERT(last == 1 || last == 2);
        ASSERT(both[i]->stride[last] == 1 && both[i]->dim[last] == x->dim[3] && both[i]->dim[last - 1] == x->dim[1]);
        ASSERT(last == 1 || both[i]->dim[0] == x->dim[0]);
    }
    PARALLEL_ROWS(x->type, i, x->dim[0] * x->dim[1], tensor_numel(x), rope_row, i, x, cos, sin, transpose, y);
}
