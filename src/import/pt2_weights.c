/* pt2_weights.c - decodes the lists of stored tensors of an archive and checks them against the records.
 *
 * Each record holds a whole storage; several names may view it. Two names with the same record, offset, sizes
 * and strides are one tensor (tied weights). Models exported without weights (fake tensors) have empty
 * records, which all share one file: those are "absent" and never count as tied.
 */
#include "import/pt2_internal.h"

bool pt2_dtype(int scalar_type, dtype *out) {
    switch (scalar_type) {
    case 4:
        *out = DT_I32;
        return true;
    case 5:
        *out = DT_I64;
        return true;
    case 6:
        *out = DT_F16;
        return true;
    case 7:
        *out = DT_F32;
        return true;
    case 8:
        *out = DT_F64;
        return true;
    case 12:
        *out = DT_BOOL;
        return true;
    case 13:
        *out = DT_BF16;
        return true;
    default:
        return false;
    }
}

const char *pt2_dtype_name(int t) {
    static const char *const names[] = {"unknown",   "uint8",      "int8",    "int16",   "int32",
                                        "int64",     "float16",    "float32", "float64", "complex32",
                                        "complex64", "complex128", "bool",    "bfloat16"};
    if (t >= 0 && t < (int)(sizeof names / sizeof *names)) return names[t];
    return t == 28              ? "uint16"
           : t >= 29 && t <= 33 ? "an 8-bit float"
           : t == 34            ? "uint32"
           : t == 35            ? "uint64"
                                : "unknown";
}

static sp_status int_list(const pt2_reader *r, const json_t *o, const char *key, int64_t **out, int *n) {
    json_t *list;
    TRY(pt2_get(r, o, key, JSON_ARRAY, &list));
    *n = (int)json_array_size(list);
    *out = ARENA_ARRAY(r->a, int64_t, *n);
    for (int i = 0; i < *n; i++) {
        TRY(pt2_get_int(r, json_array_get(list, (size_t)i), "as_int", &(*out)[i]));
        if ((*out)[i] < 0) PT2_BAD(r, "a negative size or stride");
    }
    return SP_OK;
}

/* Bytes of the storage that W reaches into; false on overflow. */
static bool extent(const pt2_weight *w, int64_t elem, int64_t *numel, int64_t *bytes) {
    int64_t last = w->offset;
    *numel = 1;
    for (int i = 0; i < w->ndim; i++)
        if (!mul_ok(*numel, w->size[i], numel)) return false;
    if (*numel == 0) {
        *bytes = 0;
        return true;
    }
    for (int i = 0; i < w->ndim; i++) {
        int64_t step;
        if (!mul_ok(w->size[i] - 1, w->stride[i], &step) || !add_ok(last, step, &last)) return false;
    }
    return add_ok(last, 1, &last) && mul_ok(last, elem, bytes);
}

static sp_status read_weight(pt2 *p, pt2_reader *r, const char *folder, const json_t *o, pt2_weight *w) {
    json_t *meta, *offset;
    const char *file;
    int64_t t;
    CHECK(!json_is_true(json_object_get(o, "use_pickle")),
          "%s: weight %s is stored as a Python object (a quantized or wrapped tensor), which cannot be read here; "
          "export the model with plain tensors",
          r->path, w->fqn);
    TRY(pt2_get(r, o, "tensor_meta", JSON_OBJECT, &meta));
    TRY(pt2_get_str(r, o, "path_name", &file));
    TRY(pt2_get_int(r, meta, "dtype", &t));
    int64_t *size, *stride;
    int ns;
    TRY(int_list(r, meta, "sizes", &size, &w->ndim));
    TRY(int_list(r, meta, "strides", &stride, &ns));
    TRY(pt2_get(r, meta, "storage_offset", JSON_OBJECT, &offset));
    TRY(pt2_get_int(r, offset, "as_int", &w->offset));
    if (ns != w->ndim || w->offset < 0) PT2_BAD(r, "sizes and strides do not match");
    w->size = size, w->stride = stride;
    w->scalar_type = t >= 0 && t < 256 ? (int)t : 0;
    if (w->scalar_type == PT2_COMPLEX64 || w->scalar_type == PT2_COMPLEX128) {
        CHECK(w->offset <= INT64_MAX / 2, "%s: weight %s begins nowhere", r->path, w->fqn);
        int64_t *pairs = ARENA_ARRAY(r->a, int64_t, ns + 1), *apart = ARENA_ARRAY(r->a, int64_t, ns + 1);
        for (int d = 0; d < ns; d++) {
            CHECK(stride[d] >= 0 && stride[d] <= INT64_MAX / 2, "%s: weight %s has a stride out of range", r->path,
                  w->fqn);
            pairs[d] = size[d], apart[d] = 2 * stride[d];
        }
        pairs[ns] = 2, apart[ns] = 1;
        w->complex = true, w->ndim = ns + 1, w->offset *= 2;
        w->size = pairs, w->stride = apart;
        w->scalar_type = w->scalar_type == PT2_COMPLEX64 ? 7 : 8;
    }
    w->requires_grad = json_is_true(json_object_get(meta, "requires_grad"));
    w->is_param = json_is_true(json_object_get(o, "is_param"));
    const char *name = arena_printf(r->a, "data/%s/%s", folder, file);
    w->entry = ziparc_find(p->zip, name);
    CHECK(w->entry >= 0, "%s: the archive has no entry %s for weight %s; export or copy it again", r->path, name,
          w->fqn);
    dtype dt;
    int64_t numel, bytes, have = ziparc_size(p->zip, w->entry);
    bool known = pt2_dtype(w->scalar_type, &dt);
    if (!extent(w, known ? dtype_size(dt) : 1, &numel, &bytes)) PT2_BAD(r, "a weight's size overflows");
    w->absent = have == 0 && numel > 0;
    CHECK(w->absent || !known || bytes <= have,
          "%s: weight %s needs %lld bytes but its entry %s has %lld; export or copy the archive again", r->path, w->fqn,
          (long long)bytes, name, (long long)have);
    return SP_OK;
}

/* The index of the first weight that is the same tensor as weight I. */
static int find_tied(pt2_reader *r, strmap *seen, const pt2_weight *w, int i) {
    if (w->absent) return i;
    buf key = {0};
    buf_printf(&key, "%d %d %lld", w->entry, w->scalar_type, (long long)w->offset);
    for (int d = 0; d < w->ndim; d++) buf_printf(&key, " %lld/%lld", (long long)w->size[d], (long long)w->stride[d]);
    int64_t first = i;
    if (!strmap_get(seen, key.data, &first)) strmap_put(seen, key.data, i);
    buf_free(&key);
    (void)r;
    return (int)first;
}

typedef VEC(pt2_weight) weight_vec;

static sp_status read_config(pt2 *p, pt2_reader *r, const char *folder, const char *entry, strmap *seen,
                             weight_vec *list) {
    int i = ziparc_find(p->zip, entry);
    if (i < 0) return SP_OK; /* a model without constants may leave the file out */
    json_t *root, *config, *v;
    r->entry = entry;
    TRY(pt2_read_json(p, r, i, (int64_t)256 << 20, &root));
    sp_status s = pt2_get(r, root, "config", JSON_OBJECT, &config);
    const char *key;
    if (s == SP_OK) {
        json_object_foreach(config, key, v) {
            pt2_weight w = {.fqn = arena_strdup(r->a, key)};
            s = read_weight(p, r, folder, v, &w);
            if (s != SP_OK) break;
            w.tied = find_tied(r, seen, &w, list->n);
            if (strmap_get(p->weight_index, w.fqn, NULL)) {
                s = err_set("%s: two stored tensors are named %s", r->path, w.fqn);
                break;
            }
            strmap_put(p->weight_index, w.fqn, list->n);
            vec_push(r->a, list, w);
        }
    }
    json_decref(root);
    return s;
}

sp_status pt2_read_weights(pt2 *p, pt2_reader *r, const char *name) {
    weight_vec list = {0};
    strmap *seen = strmap_new(r->a);
    p->weight_index = strmap_new(r->a);
    TRY(read_config(p, r, "weights", arena_printf(r->a, "data/weights/%s_weights_config.json", name), seen, &list));
    TRY(read_config(p, r, "constants", arena_printf(r->a, "data/constants/%s_constants_config.json", name), seen,
                    &list));
    p->weights = list.data, p->n_weights = list.n;
    return SP_OK;
}
