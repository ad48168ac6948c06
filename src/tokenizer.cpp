// tokenizer.cpp: the "gemma4" tokenizer: byte-pair merges over Unicode characters, byte fallback, special
// tokens (SPEC 5.1, 5.2). Used by chat.cpp, the engine and `easel tokenize`.
//
// Every distinct string that a token or a merge spells is a symbol with a number, so merging compares numbers
// only. Spaces are looked up as U+2581, but symbols remember their place in the text as it was given: what is
// not in the vocabulary falls back to the bytes of that place. Hence decode(encode(text)) == text, but for
// one case that the format cannot tell apart: a U+2581 in the text itself comes back as a space where the
// vocabulary spells it.
#include "tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <cstring>
#include <deque>
#include <functional>
#include <random>

#include "check.h"
#include "text.h"

namespace easel {

namespace {

constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, a space inside token texts
constexpr uint32_t kNone = UINT32_MAX;
constexpr size_t kMaxSpecialBytes = 256;  // the longest published one has 16; bounds the search below

// Spreads every bit of h, in another way in every process: no file can choose texts that all meet in one
// slot.
uint64_t mix(uint64_t h) {
    __extension__ typedef unsigned __int128 Wide;
    static const uint64_t salt = Wide{std::random_device{}()} << 32 | std::random_device{}();
    const Wide product = Wide{h ^ salt} * 0x9e3779b97f4a7c15;  // 2^64 / golden ratio
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// Distinct strings to numbers 0, 1, 2.. in the order of their first intern(). Open addressing; strings of up
// to 8 bytes, which most tokens are, are compared without a look at their text: loading is bound by cache
// misses. Keeps views: the characters live elsewhere.
class StringIndex {
  public:
    explicit StringIndex(size_t expected) { grow(expected); }

    uint32_t find(std::string_view s) const { return slots_[slot_of(s, key_of(s))].number; }
    uint32_t intern(std::string_view s) {
        if (texts.size() * 2 >= slots_.size()) grow(texts.size() * 2);
        const uint64_t key = key_of(s);
        Slot& slot = slots_[slot_of(s, key)];
        if (slot.number == kNone) {
            slot = {key, static_cast<uint32_t>(s.size()), static_cast<uint32_t>(texts.size())};
            texts.push_back(s);
        }
        return slot.number;
    }

    std::vector<std::string_view> texts;  // by number

  private:
    struct Slot {
        uint64_t key = 0;  // the bytes themselves, or a hash of more than 8
        uint32_t bytes = 0;
        uint32_t number = kNone;
    };

    static uint64_t key_of(std::string_view s) {
        uint64_t key = 0, word = 0;
        for (; s.size() > sizeof word; s.remove_prefix(sizeof word)) {
            std::memcpy(&word, s.data(), sizeof word);
            key = mix(key ^ word);
        }
        word = 0;
        if (!s.empty()) std::memcpy(&word, s.data(), s.size());
        return key ^ word;
    }
    size_t slot_of(std::string_view s, uint64_t key) const {
        const size_t mask = slots_.size() - 1;
        for (size_t i = mix(key + s.size()) & mask;; i = (i + 1) & mask) {
            const Slot& slot = slots_[i];
            if (slot.number == kNone) return i;
            if (slot.key == key && slot.bytes == s.size() && (s.size() <= 8 || texts[slot.number] == s))
                return i;
        }
    }
    void grow(size_t strings) {
        size_t n = 64;
        while (n < strings * 2 + 2) n *= 2;
        slots_.assign(n, {});
        for (uint32_t i = 0; i < texts.size(); i++) {
            const uint64_t key = key_of(texts[i]);
            slots_[slot_of(texts[i], key)] = {key, static_cast<uint32_t>(texts[i].size()), i};
        }
    }

    std::vector<Slot> slots_;
};

struct Merge {
    uint32_t left = kNone, right = kNone;
    uint32_t rank = kNone, result = kNone;
};

// Pairs of symbols that merge; sized once, at least a third empty.
class MergeIndex {
  public:
    explicit MergeIndex(size_t merges) {
        size_t n = 64;
        while (n < merges + merges / 2) n *= 2;
        slots_.resize(n);
    }
    const Merge& find(uint32_t left, uint32_t right) const {  // rank kNone when absent
        return slots_[slot_of(left, right)];
    }
    void add(const Merge& merge) {  // the first of equal pairs wins: it has the lower rank
        Merge& m = slots_[slot_of(merge.left, merge.right)];
        if (m.rank == kNone) m = merge;
    }

  private:
    size_t slot_of(uint32_t left, uint32_t right) const {
        const size_t mask = slots_.size() - 1;
        for (size_t i = mix(uint64_t{left} << 32 | right) & mask;; i = (i + 1) & mask) {
            const Merge& m = slots_[i];
            if (m.rank == kNone || (m.left == left && m.right == right)) return i;
        }
    }

    std::vector<Merge> slots_;
};

struct Match {
    size_t pos, bytes;
    int32_t id;
};

// Finds special-token strings in a text: longer strings first, wherever they are; of equally long ones the
// leftmost.
class SpecialIndex {
  public:
    void add(std::string_view text, int32_t id) { list_.push_back({text, id}); }
    void finish() {
        std::sort(list_.begin(), list_.end());
        auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
        list_.erase(std::unique(list_.begin(), list_.end(), same), list_.end());  // the lowest id stays
        for (size_t i = list_.size(); i-- > 0;) first_[static_cast<unsigned char>(list_[i].first[0])] = i + 1;
    }

    // Ordered by place, not overlapping.
    std::vector<Match> search(std::string_view text) const {
        std::vector<Match> found;
        for (size_t pos = 0; pos < text.size(); pos++)
            if (first_[static_cast<unsigned char>(text[pos])]) match_at(text, pos, found);
        std::stable_sort(found.begin(), found.end(),
                         [](const Match& a, const Match& b) { return a.bytes > b.bytes; });
        // What was taken before is at least as long as the next match, so looking at its two ends is enough.
        std::vector<bool> taken(found.empty() ? 0 : text.size());
        std::erase_if(found, [&](const Match& m) {
            if (taken[m.pos] || taken[m.pos + m.bytes - 1]) return true;
            std::fill_n(taken.begin() + m.pos, m.bytes, true);
            return false;
        });
        std::sort(found.begin(), found.end(), [](const Match& a, const Match& b) { return a.pos < b.pos; });
        return found;
    }

  private:
    // Appends every special string that text[pos..] starts with. In list_ these lie one after the other, each
    // inside the range of those that begin with the one before: the range narrows byte by byte.
    void match_at(std::string_view text, size_t pos, std::vector<Match>& found) const {
        auto byte_at = [](std::string_view s, size_t i) { return static_cast<unsigned char>(s[i]); };
        auto lo = list_.begin() + (first_[byte_at(text, pos)] - 1), hi = list_.end();
        for (size_t depth = 0; pos + depth < text.size(); depth++) {
            const unsigned char c = byte_at(text, pos + depth);
            lo = std::partition_point(lo, hi, [&](const auto& e) { return byte_at(e.first, depth) < c; });
            hi = std::partition_point(lo, hi, [&](const auto& e) { return byte_at(e.first, depth) == c; });
            if (lo != hi && lo->first.size() == depth + 1) found.push_back({pos, depth + 1, (lo++)->second});
            if (lo == hi) return;
        }
    }

    std::vector<std::pair<std::string_view, int32_t>> list_;  // text and id, sorted
    std::array<size_t, 256> first_{};  // by first byte: 1 + where its strings begin in list_, or 0
};

// The value of a byte token's text "<0x0A>", or -1.
int byte_value(std::string_view s) {
    unsigned value = 0;
    if (s.size() != 6 || !s.starts_with("<0x") || s[5] != '>') return -1;
    return std::from_chars(s.data() + 3, s.data() + 5, value, 16).ptr == s.data() + 5
               ? static_cast<int>(value)
               : -1;
}

bool only_space(std::string_view s) {
    while (!s.empty()) {
        const size_t n = s.starts_with(kSpace) ? kSpace.size() : 1;
        if (n == 1 && s[0] != '\n' && s[0] != '\t') return false;
        s.remove_prefix(n);
    }
    return true;
}

// A place in the line that is being merged: a run of its bytes that is one symbol so far.
struct Place {
    uint32_t start;         // in the line; the run ends where the next one begins
    uint32_t prev, next;    // kNone at the ends
    uint32_t symbol;        // kNone: nothing that the file spells
    uint32_t rank = kNone;  // of the merge with the next place; kNone: there is none, or this place is gone
    uint32_t result = kNone;
};

// Kept from line to line, so that a text of many short lines does not allocate for each.
struct Scratch {
    std::vector<Place> places;
    std::vector<uint64_t> heap;  // rank << 32 | place: the lowest rank first, then the leftmost
};

}  // namespace

struct Tokenizer::Tables {
    std::vector<std::string_view> texts;  // by id, in the file
    std::vector<TokenType> types;         // by id
    StringIndex index;
    std::vector<int32_t> id_of;        // by symbol: the lowest id with this text, or -1
    std::vector<int32_t> plain_id_of;  // by symbol: the lowest id that plain text may become, or -1
    std::deque<std::string> extra;     // texts of symbols that no token spells
    MergeIndex merges;
    SpecialIndex user_defined, all;
    std::array<int32_t, 256> byte_id;
    std::array<uint32_t, 128> ascii;  // symbol of a character; of U+2581 for the space

    Tables(const Gguf& file, const std::vector<std::string_view>& tokens, size_t n_merges)
        : texts(tokens), index(tokens.size()), merges(n_merges) {
        read_types(file);
        read_tokens(file);
        read_merges(file);
        id_of.resize(index.texts.size(), -1);
        plain_id_of.resize(index.texts.size(), -1);
        for (int c = 0; c < 128; c++) {
            const char text = static_cast<char>(c);
            ascii[c] = c == ' ' ? index.find(kSpace) : index.find({&text, 1});
        }
    }

    // Whether a token can come out of merging. Control tokens and the like cannot, whatever a file's merges
    // spell: text must never turn into one. User-defined runs of white space may: they stand for nothing
    // else.
    bool is_plain(int32_t id) const {
        return types[id] == TokenType::Normal || types[id] == TokenType::Unused ||
               (types[id] == TokenType::UserDefined && only_space(texts[id]));
    }

    void read_types(const Gguf& file);
    void read_tokens(const Gguf& file);
    void read_merges(const Gguf& file);
    void encode_plain(std::string_view text, Scratch& scratch, std::vector<int32_t>& out) const;
    void encode_line(std::string_view line, Scratch& scratch, std::vector<int32_t>& out) const;
};

void Tokenizer::Tables::read_types(const Gguf& file) {
    const char* key = "tokenizer.ggml.token_type";
    const std::vector<int64_t> numbers = file.integers(key);
    require(numbers.size() == texts.size(), "{}: {} has {} items, expected {}, one per token", file.name(),
            key, numbers.size(), texts.size());
    types.reserve(numbers.size());
    for (size_t id = 0; id < numbers.size(); id++) {
        require(numbers[id] >= 1 && numbers[id] <= 6, "{}: {}[{}] is {}, expected 1 to 6", file.name(), key,
                id, numbers[id]);
        types.push_back(static_cast<TokenType>(numbers[id]));
    }
}

void Tokenizer::Tables::read_tokens(const Gguf& file) {
    const char* key = "tokenizer.ggml.tokens";
    byte_id.fill(-1);
    for (int32_t id = 0; id < static_cast<int32_t>(texts.size()); id++) {
        const std::string_view text = texts[id];
        const uint32_t symbol = index.intern(text);
        if (symbol == id_of.size()) {
            id_of.push_back(id);
            plain_id_of.push_back(-1);
        }
        if (plain_id_of[symbol] < 0 && is_plain(id)) plain_id_of[symbol] = id;
        if (types[id] == TokenType::Byte) {
            const int value = byte_value(text);
            require(value >= 0, "{}: {}[{}] is a byte token, expected a text like <0x0A>, found \"{}\"",
                    file.name(), key, id, shown(text));
            if (byte_id[value] < 0) byte_id[value] = id;
        }
        const bool is_user_defined = types[id] == TokenType::UserDefined;
        if (text.empty() ||
            !(is_user_defined || types[id] == TokenType::Control || types[id] == TokenType::Unknown))
            continue;
        require(text.size() <= kMaxSpecialBytes,
                "{}: {}[{}] is a special token of {} bytes, expected at most {}", file.name(), key, id,
                text.size(), kMaxSpecialBytes);
        all.add(text, id);
        if (is_user_defined) user_defined.add(text, id);
    }
    all.finish();
    user_defined.finish();
    for (int value = 0; value < 256; value++)
        require(byte_id[value] >= 0,
                "{}: {} lacks the byte token <0x{:02X}> (type 6), expected all 256 of them", file.name(), key,
                value);
}

void Tokenizer::Tables::read_merges(const Gguf& file) {
    const char* key = "tokenizer.ggml.merges";
    const std::vector<std::string_view>& lines = file.strings(key);
    std::string joined;
    for (uint32_t rank = 0; rank < lines.size(); rank++) {
        const std::string_view line = lines[rank];
        const size_t space = line.find(' ', 1);
        if (space >= line.size() - 1)  // not require(): it would make the message for every line
            fail("{}: {}[{}]: expected two texts with a space between, found \"{}\"", file.name(), key, rank,
                 shown(line));
        const std::string_view left = line.substr(0, space), right = line.substr(space + 1);
        Merge merge{.left = index.intern(left), .right = index.intern(right), .rank = rank};
        joined.assign(left).append(right);
        merge.result = index.find(joined);
        if (merge.result == kNone) merge.result = index.intern(extra.emplace_back(joined));
        merges.add(merge);
    }
}

// Text without special strings: newline runs apart from the rest (SPEC 5.1, step 3).
void Tokenizer::Tables::encode_plain(std::string_view text, Scratch& scratch,
                                     std::vector<int32_t>& out) const {
    while (!text.empty()) {
        const bool newlines = text[0] == '\n';
        const size_t end = newlines ? text.find_first_not_of('\n') : text.find('\n');
        const std::string_view line = text.substr(0, end);
        const uint32_t whole = newlines ? index.find(line) : kNone;
        if (whole != kNone && plain_id_of[whole] >= 0)
            out.push_back(plain_id_of[whole]);
        else
            encode_line(line, scratch, out);
        text.remove_prefix(line.size());
    }
}

void Tokenizer::Tables::encode_line(std::string_view line, Scratch& scratch,
                                    std::vector<int32_t>& out) const {
    std::vector<Place>& places = scratch.places;
    std::vector<uint64_t>& heap = scratch.heap;
    const auto lower = std::greater<uint64_t>();  // std::*_heap keep the largest in front
    places.clear();
    heap.clear();
    for (size_t at = 0; at < line.size();) {
        const unsigned char c = line[at];
        const size_t n = c < 128 ? 1 : first_char(line.substr(at)).n;
        const uint32_t i = static_cast<uint32_t>(places.size());
        const uint32_t symbol = c < 128 ? ascii[c] : index.find(line.substr(at, n));
        places.push_back({static_cast<uint32_t>(at), i ? i - 1 : kNone, i + 1, symbol});
        at += n;
    }
    places.back().next = kNone;

    // Notes the merge of place i with the next one, and puts it on the heap. False: there is no such merge.
    auto find_merge = [&](uint32_t i) {
        Place& place = places[i];
        place.rank = kNone;
        if (place.next == kNone || place.symbol == kNone || places[place.next].symbol == kNone) return false;
        const Merge& merge = merges.find(place.symbol, places[place.next].symbol);
        place.rank = merge.rank;
        place.result = merge.result;
        if (merge.rank == kNone) return false;
        heap.push_back(uint64_t{merge.rank} << 32 | i);
        return true;
    };
    for (uint32_t i = 0; i < places.size(); i++) find_merge(i);
    std::make_heap(heap.begin(), heap.end(), lower);
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), lower);
        const uint64_t top = heap.back();
        heap.pop_back();
        Place& place = places[static_cast<uint32_t>(top)];
        if (place.rank != top >> 32) continue;  // since then, one of the two has merged with another
        Place& gone = places[place.next];
        place.symbol = place.result;
        place.next = gone.next;
        gone.rank = kNone;
        if (place.next != kNone) places[place.next].prev = static_cast<uint32_t>(top);
        if (find_merge(static_cast<uint32_t>(top))) std::push_heap(heap.begin(), heap.end(), lower);
        if (place.prev != kNone && find_merge(place.prev)) std::push_heap(heap.begin(), heap.end(), lower);
    }

    for (uint32_t i = 0; i != kNone; i = places[i].next) {
        const Place& place = places[i];
        if (place.symbol != kNone && plain_id_of[place.symbol] >= 0) {
            out.push_back(plain_id_of[place.symbol]);
            continue;
        }
        const size_t end = place.next == kNone ? line.size() : places[place.next].start;
        for (unsigned char c : line.substr(place.start, end - place.start)) out.push_back(byte_id[c]);
    }
}

// The id under `key`, or -1.
static int32_t read_id(const Gguf& file, const char* key, size_t n_vocab) {
    if (!file.find(key)) return -1;
    const int64_t id = file.integer(key);
    require(id >= 0 && id < static_cast<int64_t>(n_vocab), "{}: {} is {}, expected 0 to {}", file.name(), key,
            id, n_vocab - 1);
    return static_cast<int32_t>(id);
}

Tokenizer::Tokenizer(const Gguf& file) {
    const std::string_view model = file.string("tokenizer.ggml.model");
    require(model == "gemma4", "{}: tokenizer.ggml.model: expected \"gemma4\", found \"{}\"", file.name(),
            shown(model));
    const std::vector<std::string_view>& tokens = file.strings("tokenizer.ggml.tokens");
    require(!tokens.empty() && tokens.size() <= INT32_MAX,
            "{}: tokenizer.ggml.tokens has {} items, expected 1 to {}", file.name(), tokens.size(),
            INT32_MAX);
    // Scores are not used, but wrong ones tell of a broken file.
    if (const Value* scores = file.find("tokenizer.ggml.scores"))
        require(scores->is_array() && scores->item != ValueType::String && scores->count == tokens.size(),
                "{}: tokenizer.ggml.scores: expected an array of {} numbers, one per token, found {} of {}",
                file.name(), tokens.size(), scores->count,
                value_type_name(scores->is_array() ? scores->item : scores->type));
    const size_t n_merges = file.strings("tokenizer.ggml.merges").size();
    require(n_merges <= INT32_MAX, "{}: tokenizer.ggml.merges has {} items, expected at most {}", file.name(),
            n_merges, INT32_MAX);
    tables_ = std::make_unique<Tables>(file, tokens, n_merges);

    bos = read_id(file, "tokenizer.ggml.bos_token_id", tokens.size());
    eos = read_id(file, "tokenizer.ggml.eos_token_id", tokens.size());
    pad = read_id(file, "tokenizer.ggml.padding_token_id", tokens.size());
    const int32_t eot = read_id(file, "tokenizer.ggml.eot_token_id", tokens.size());
    for (int32_t id = 0; id < n_vocab(); id++)
        if (id == eos || id == eot || tokens[id] == "<turn|>" || tokens[id] == "<|tool_response>")
            end_of_generation.push_back(id);
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, Specials specials) const {
    require(text.size() <= INT32_MAX, "a text of {} bytes, expected at most {}", text.size(), INT32_MAX);
    std::vector<Match> matches;
    if (specials == Specials::UserDefined) matches = tables_->user_defined.search(text);
    if (specials == Specials::All) matches = tables_->all.search(text);
    std::vector<int32_t> ids;
    Scratch scratch;
    size_t done = 0;
    for (const Match& match : matches) {
        tables_->encode_plain(text.substr(done, match.pos - done), scratch, ids);
        ids.push_back(match.id);
        done = match.pos + match.bytes;
    }
    tables_->encode_plain(text.substr(done), scratch, ids);
    return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool show_control) const {
    std::string out;
    for (int32_t id : ids) {
        std::string_view rest = text(id);
        const TokenType kind = tables_->types[id];
        if (kind == TokenType::Byte) {
            out += static_cast<char>(byte_value(rest));
        } else if (tables_->is_plain(id)) {
            for (size_t at; (at = rest.find(kSpace)) != rest.npos; rest.remove_prefix(at + kSpace.size()))
                out.append(rest.substr(0, at)) += ' ';
            out += rest;
        } else if (show_control || kind == TokenType::UserDefined) {
            out += rest;
        }
    }
    return out;
}

int Tokenizer::n_vocab() const {
    return static_cast<int>(tables_->texts.size());
}

std::string_view Tokenizer::text(int32_t id) const {
    require(id >= 0 && id < n_vocab(), "token id {}: expected 0 to {}", id, n_vocab() - 1);
    return tables_->texts[id];
}

std::optional<int32_t> Tokenizer::find(std::string_view text) const {
    const uint32_t symbol = tables_->index.find(text);
    if (symbol == kNone || tables_->id_of[symbol] < 0) return std::nullopt;
    return tables_->id_of[symbol];
}

bool Tokenizer::is_end(int32_t id) const {
    return std::binary_search(end_of_generation.begin(), end_of_generation.end(), id);
}

}  // namespace easel
