#include "core/dns/dns_message.h"

#include <assert.h>

/* The header (RFC 1035, 4.1.1): ID, flags and the four sections' counts, 16 bits each. */
struct header {
    uint16_t id, flags;
    uint16_t questions, answers, authorities, additionals;
};

enum { OPT_SIZE = 11, OPT_FLAG_DO = 0x8000 };
enum { POINTER_TO_QUESTION = 0xc000 | DNS_HEADER_SIZE }; /* a name: "as in the question" */
enum { KEY_FLAG_RD = 1, KEY_FLAG_CD = 2, KEY_FLAG_DO = 4 };

static struct header read_header(struct reader *r)
{
    struct header h;
    h.id = reader_u16(r);
    h.flags = reader_u16(r);
    h.questions = reader_u16(r);
    h.answers = reader_u16(r);
    h.authorities = reader_u16(r);
    h.additionals = reader_u16(r);
    return h;
}

static void write_header(struct writer *w, const struct header *h)
{
    writer_u16(w, h->id);
    writer_u16(w, h->flags);
    writer_u16(w, h->questions);
    writer_u16(w, h->answers);
    writer_u16(w, h->authorities);
    writer_u16(w, h->additionals);
}

static bool read_question(struct reader *r, struct dns_question *q)
{
    if (!dns_name_read(r, &q->name))
        return false;
    q->type = reader_u16(r);
    q->class_ = reader_u16(r);
    return !r->bad;
}

static void write_question(struct writer *w, const struct dns_question *q)
{
    writer_bytes(w, q->name.bytes, q->name.len);
    writer_u16(w, q->type);
    writer_u16(w, q->class_);
}

/*
 * A resource record (RFC 1035, 4.1.3):
 *
 *   NAME  TYPE(16)  CLASS(16)  TTL(32)  RDLENGTH(16)  RDATA
 *
 * In OPT (RFC 6891, 6.1.3) CLASS is a UDP size and TTL is RCODE(8) VERSION(8) DO(1) Z(15).
 */
struct record {
    struct dns_name name;
    uint16_t type, class_;
    uint32_t ttl;
    size_t begin, ttl_at; /* offsets in the message, bytes */
    struct reader data;   /* the RDATA, spanning the message so that pointers can be followed */
};

static bool read_record(struct reader *r, struct record *out)
{
    out->begin = reader_used(r);
    if (!dns_name_read(r, &out->name))
        return false;
    out->type = reader_u16(r);
    out->class_ = reader_u16(r);
    out->ttl_at = reader_used(r);
    out->ttl = reader_u32(r);
    uint16_t length = reader_u16(r);
    const uint8_t *data = reader_bytes(r, length);
    if (!data)
        return false;
    out->data = (struct reader){.start = r->start, .at = data, .end = data + length};
    return true;
}

static void write_opt(struct writer *w, const struct dns_request *request, enum dns_rcode rcode)
{
    writer_u8(w, 0);
    writer_u16(w, DNS_TYPE_OPT);
    writer_u16(w, DNS_UDP_SIZE);
    writer_u8(w, (uint8_t)(rcode >> 4));
    writer_u8(w, 0); /* version */
    writer_u16(w, request->dnssec_ok ? OPT_FLAG_DO : 0);
    writer_u16(w, 0); /* no options */
}

/* --- queries -------------------------------------------------------------------------------- */

/* What the OPT record says; false where the record is out of order (RFC 6891, 6.1.1). */
static bool take_opt(struct dns_request *out, const struct record *opt, uint8_t *version)
{
    if (out->edns || opt->name.len != 1)
        return false;
    out->edns = true;
    out->udp_size = opt->class_ < DNS_UDP_MIN ? DNS_UDP_MIN : opt->class_;
    out->dnssec_ok = (opt->ttl & OPT_FLAG_DO) != 0;
    *version = (uint8_t)(opt->ttl >> 16);
    return true;
}

bool dns_request_parse(struct dns_request *out, const uint8_t *message, size_t len,
                       enum dns_rcode *rcode)
{
    struct reader r = reader_over(message, len);
    struct header h = read_header(&r);
    if (r.bad || (h.flags & DNS_FLAG_QR))
        return false;

    *out = (struct dns_request){.id = h.id, .flags = h.flags, .udp_size = DNS_UDP_MIN};
    if (h.flags & DNS_FLAG_OPCODE) {
        *rcode = DNS_NOTIMP;
        return true;
    }
    *rcode = DNS_FORMERR;
    if (h.questions != 1 || !read_question(&r, &out->question))
        return true;
    out->has_question = true;

    /* A query has no other records than OPT, as a rule; IXFR and UPDATE have, TSIG follows OPT. */
    uint8_t version = 0;
    struct record record;
    for (uint32_t i = (uint32_t)h.answers + h.authorities + h.additionals; i > 0; i--) {
        if (!read_record(&r, &record))
            return true;
        if (record.type == DNS_TYPE_OPT && !take_opt(out, &record, &version))
            return true;
    }
    *rcode = version > 0 ? DNS_BADVERS : DNS_NOERROR;
    return true;
}

/* --- answers of our own --------------------------------------------------------------------- */

void dns_reply_begin(struct dns_reply *r, const struct dns_request *request, uint8_t *buf)
{
    *r = (struct dns_reply){.w = writer_over(buf, DNS_LOCAL_ANSWER_MAX), .request = request};
    writer_reserve(&r->w, DNS_HEADER_SIZE);
    if (request->has_question)
        write_question(&r->w, &request->question);
}

static void write_record_head(struct writer *w, uint16_t type, uint32_t ttl)
{
    writer_u16(w, type);
    writer_u16(w, DNS_CLASS_IN);
    writer_u32(w, ttl);
}

void dns_reply_address(struct dns_reply *r, const struct addr *a, uint32_t ttl)
{
    bool v4 = addr_is_v4(a);
    writer_u16(&r->w, POINTER_TO_QUESTION);
    write_record_head(&r->w, v4 ? DNS_TYPE_A : DNS_TYPE_AAAA, ttl);
    writer_u16(&r->w, v4 ? 4 : 16);
    writer_bytes(&r->w, v4 ? addr_v4_bytes(a) : a->bytes, v4 ? 4 : 16);
    r->answers++;
}

void dns_reply_ptr(struct dns_reply *r, const char *name, uint32_t ttl)
{
    struct dns_name target;
    if (!dns_name_parse(name, &target))
        return;
    writer_u16(&r->w, POINTER_TO_QUESTION);
    write_record_head(&r->w, DNS_TYPE_PTR, ttl);
    writer_u16(&r->w, target.len);
    writer_bytes(&r->w, target.bytes, target.len);
    r->answers++;
}

void dns_reply_soa(struct dns_reply *r, uint32_t ttl)
{
    writer_u8(&r->w, 0); /* owner: the root, the one zone that holds every name */
    write_record_head(&r->w, DNS_TYPE_SOA, ttl);
    writer_u16(&r->w, 1 + 1 + 5 * 4);
    writer_u8(&r->w, 0); /* MNAME, RNAME: nobody */
    writer_u8(&r->w, 0);
    writer_u32(&r->w, 1); /* SERIAL, REFRESH, RETRY, EXPIRE: of use to secondaries only */
    writer_u32(&r->w, 3600);
    writer_u32(&r->w, 600);
    writer_u32(&r->w, 86400);
    writer_u32(&r->w, ttl); /* MINIMUM */
    r->authorities++;
}

/* RD and CD come back as they were sent (RFC 1035, 4.1.1; RFC 4035, 3.2.2). */
static uint16_t reply_flags(const struct dns_request *request)
{
    uint16_t kept = DNS_FLAG_OPCODE | DNS_FLAG_RD | DNS_FLAG_CD;
    return (uint16_t)(DNS_FLAG_QR | DNS_FLAG_RA | (request->flags & kept));
}

size_t dns_reply_end(struct dns_reply *r, enum dns_rcode rcode)
{
    const struct dns_request *request = r->request;
    if (request->edns)
        write_opt(&r->w, request, rcode);
    assert(!r->w.bad); /* DNS_LOCAL_ANSWER_MAX holds one record of each kind */

    struct header h = {
        .id = request->id,
        .flags = (uint16_t)(reply_flags(request) | (rcode & DNS_FLAG_RCODE)),
        .questions = request->has_question,
        .answers = r->answers,
        .authorities = r->authorities,
        .additionals = request->edns,
    };
    struct writer head = writer_over(r->w.start, DNS_HEADER_SIZE);
    write_header(&head, &h);
    return writer_used(&r->w);
}

size_t dns_reply_empty(const struct dns_request *request, enum dns_rcode rcode, uint8_t *buf)
{
    struct dns_reply r;
    dns_reply_begin(&r, request, buf);
    return dns_reply_end(&r, rcode);
}

/* --- keys ----------------------------------------------------------------------------------- */

void dns_key_make(struct dns_key *key, const struct dns_request *request)
{
    struct dns_question q = request->question;
    dns_name_lower(&q.name);
    uint8_t flags = (uint8_t)((request->flags & DNS_FLAG_RD ? KEY_FLAG_RD : 0) |
                              (request->flags & DNS_FLAG_CD ? KEY_FLAG_CD : 0) |
                              (request->dnssec_ok ? KEY_FLAG_DO : 0));
    struct writer w = writer_over(key->bytes, sizeof(key->bytes));
    write_question(&w, &q);
    writer_u8(&w, flags);
    key->len = (uint16_t)writer_used(&w);
}

bool dns_key_equal(const struct dns_key *a, const struct dns_key *b)
{
    return a->len == b->len && memcmp(a->bytes, b->bytes, a->len) == 0;
}

size_t dns_key_query(const struct dns_key *key, uint16_t id, uint8_t buf[DNS_QUERY_MAX])
{
    uint8_t flags = key->bytes[key->len - 1];
    bool dnssec_ok = (flags & KEY_FLAG_DO) != 0;
    /* AD in a query says that the asker understands AD in the answer (RFC 6840, 5.7). */
    struct header h = {
        .id = id,
        .flags = (uint16_t)(DNS_FLAG_AD | (flags & KEY_FLAG_RD ? DNS_FLAG_RD : 0) |
                            (flags & KEY_FLAG_CD ? DNS_FLAG_CD : 0)),
        .questions = 1,
        .additionals = dnssec_ok,
    };
    struct writer w = writer_over(buf, DNS_QUERY_MAX);
    write_header(&w, &h);
    writer_bytes(&w, key->bytes, key->len - 1u);
    if (dnssec_ok)
        write_opt(&w, &(struct dns_request){.dnssec_ok = true}, DNS_NOERROR);
    return writer_used(&w);
}

/* --- answers of a server -------------------------------------------------------------------- */

/* What the walk through an answer's records gathers. */
struct survey {
    uint32_t ttl; /* the lowest of all records */
    uint32_t soa; /* how long the SOA in the authority section lets a negative answer live */
    bool has_soa;
    bool has_data;       /* a record of the type that was asked for */
    bool bad_rcode;      /* the OPT record extends the rcode to something that we do not know */
    size_t opt_at;       /* offset of the OPT record, 0: none */
    uint16_t before_opt; /* additional records before it */
};

enum section { SECTION_ANSWER, SECTION_AUTHORITY, SECTION_ADDITIONAL };

/* RFC 2308, 5: the lower of the SOA's own TTL and its MINIMUM, the last field of its data. */
static bool read_soa(const struct record *soa, uint32_t *ttl)
{
    struct reader r = soa->data;
    struct dns_name ignored;
    for (int mname_rname = 0; mname_rname < 2; mname_rname++)
        if (!dns_name_read(&r, &ignored))
            return false;
    reader_skip(&r, 4 * 4);
    uint32_t minimum = reader_u32(&r);
    *ttl = minimum < soa->ttl ? minimum : soa->ttl;
    return !r.bad;
}

static void survey_record(struct survey *s, const struct record *record, enum section section,
                          uint16_t asked_type)
{
    /* RFC 2181, 8: a TTL with the top bit set counts as 0. */
    uint32_t ttl = record->ttl > INT32_MAX ? 0 : record->ttl;
    if (ttl < s->ttl)
        s->ttl = ttl;
    if (section == SECTION_ANSWER && (record->type == asked_type || asked_type == DNS_TYPE_ANY))
        s->has_data = true;
    if (section == SECTION_AUTHORITY && record->type == DNS_TYPE_SOA)
        s->has_soa = read_soa(record, &s->soa);
}

static bool survey_section(struct survey *s, struct reader *r, enum section section, uint16_t count,
                           uint16_t asked_type)
{
    struct record record;
    for (uint16_t i = 0; i < count; i++) {
        if (!read_record(r, &record))
            return false;
        if (record.type != DNS_TYPE_OPT) {
            if (s->opt_at == 0)
                survey_record(s, &record, section, asked_type);
            continue;
        }
        if (section != SECTION_ADDITIONAL || s->opt_at != 0)
            return false;
        s->opt_at = record.begin;
        s->before_opt = i;
        s->bad_rcode = record.ttl >> 24 != 0;
    }
    return true;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t lifetime(const struct header *h, const struct survey *s)
{
    unsigned rcode = h->flags & DNS_FLAG_RCODE;
    if ((h->flags & DNS_FLAG_TC) || (rcode != DNS_NOERROR && rcode != DNS_NXDOMAIN))
        return 0;
    if (rcode == DNS_NOERROR && s->has_data)
        return min_u32(s->ttl, DNS_TTL_MAX);
    return s->has_soa ? min_u32(min_u32(s->ttl, s->soa), DNS_NEGATIVE_TTL_MAX) : 0;
}

static bool is_question_of(const struct dns_question *q, const struct dns_key *key)
{
    struct dns_key other;
    dns_key_make(&other, &(struct dns_request){.question = *q});
    return other.len == key->len && memcmp(other.bytes, key->bytes, key->len - 1u) == 0;
}

bool dns_answer_check(struct dns_answer *out, uint8_t *message, size_t len,
                      const struct dns_key *key)
{
    struct reader r = reader_over(message, len);
    struct header h = read_header(&r);
    struct dns_question question;
    if (len > DNS_MESSAGE_MAX || !(h.flags & DNS_FLAG_QR) || (h.flags & DNS_FLAG_OPCODE) ||
        h.questions != 1 || !read_question(&r, &question) || !is_question_of(&question, key))
        return false;

    struct survey s = {.ttl = UINT32_MAX};
    if (!survey_section(&s, &r, SECTION_ANSWER, h.answers, question.type) ||
        !survey_section(&s, &r, SECTION_AUTHORITY, h.authorities, question.type) ||
        !survey_section(&s, &r, SECTION_ADDITIONAL, h.additionals, question.type))
        return false;

    /*
     * The OPT record is between the server and us. It comes last but for signatures of the
     * message itself, which do not survive our changes: the message ends where it begins.
     */
    out->len = s.opt_at ? s.opt_at : reader_used(&r);
    if (s.opt_at)
        h.additionals = s.before_opt;
    if (s.bad_rcode)
        h.flags = (uint16_t)((h.flags & ~DNS_FLAG_RCODE) | DNS_SERVFAIL);
    out->ttl = lifetime(&h, &s);
    struct writer head = writer_over(message, DNS_HEADER_SIZE);
    write_header(&head, &h);
    return true;
}

/* Take `age` seconds off each TTL in `count` records; false where the records are broken. */
static bool age_records(struct reader *r, uint8_t *message, uint32_t count, uint32_t age)
{
    struct record record;
    for (uint32_t i = 0; i < count; i++) {
        if (!read_record(r, &record))
            return false;
        struct writer ttl = writer_over(message + record.ttl_at, 4);
        writer_u32(&ttl, record.ttl > age ? record.ttl - age : 0);
    }
    return true;
}

size_t dns_answer_finish(const struct dns_request *request, const uint8_t *message, size_t len,
                         uint32_t age, size_t limit, uint8_t *out)
{
    memcpy(out, message, len);
    struct reader r = reader_over(out, len);
    struct header h = read_header(&r);
    size_t name_at = reader_used(&r);
    struct dns_question question;
    if (!read_question(&r, &question) || question.name.len != request->question.name.len)
        return dns_reply_empty(request, DNS_SERVFAIL, out);

    size_t sections[3]; /* where the records before each section's end stop */
    sections[0] = reader_used(&r);
    bool good = age_records(&r, out, (uint32_t)h.answers + h.authorities, age);
    sections[1] = reader_used(&r);
    good = good && age_records(&r, out, h.additionals, age);
    sections[2] = reader_used(&r);
    if (!good)
        return dns_reply_empty(request, DNS_SERVFAIL, out);
    memcpy(out + name_at, request->question.name.bytes, request->question.name.len);

    uint16_t from_server = DNS_FLAG_AA | DNS_FLAG_TC | DNS_FLAG_RCODE;
    /* AD is for those who asked for it (RFC 6840, 5.8). */
    if (request->dnssec_ok || (request->flags & DNS_FLAG_AD))
        from_server |= DNS_FLAG_AD;
    h.id = request->id;
    h.flags = (uint16_t)((h.flags & from_server) | reply_flags(request));

    size_t opt = request->edns ? OPT_SIZE : 0;
    if (limit > DNS_MESSAGE_MAX)
        limit = DNS_MESSAGE_MAX;
    size_t used = sections[2];
    if (used + opt > limit) {
        used = sections[1];
        h.additionals = 0;
    }
    if (used + opt > limit) {
        used = sections[0];
        h.answers = h.authorities = 0;
        h.flags |= DNS_FLAG_TC;
    }
    struct writer w = writer_over(out, DNS_MESSAGE_MAX);
    if (request->edns)
        h.additionals++;
    write_header(&w, &h);
    w.at = out + used;
    if (request->edns)
        write_opt(&w, request, DNS_NOERROR);
    return writer_used(&w);
}
