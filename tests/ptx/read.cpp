// read.cpp: from the text of a .ptx file to instructions; see code.h.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <unordered_map>

#include "check.h"
#include "code.h"

namespace easel::ptx {

namespace {

using Words = std::vector<std::string>;

std::string trim(std::string_view s) {
    const auto first = s.find_first_not_of(" \t\n\r");
    if (first == s.npos) return {};
    return std::string(s.substr(first, s.find_last_not_of(" \t\n\r") - first + 1));
}
Words split(const std::string& s, char by) {
    Words out;
    std::stringstream stream(s);
    for (std::string word; std::getline(stream, word, by);)
        if (!trim(word).empty()) out.push_back(trim(word));
    return out;
}

// Reads a file from start to end.
class Reader {
  public:
    explicit Reader(const std::string& path) : path_(path) {
        std::ifstream file(path);
        require(file.good(), "{}: cannot be read", path);
        std::stringstream all;
        all << file.rdbuf();
        text_ = all.str();
    }

    std::vector<Code> read() {
        std::vector<Code> out;
        for (Piece p; next(p);) {
            if (p.end == '{') {
                const size_t entry = p.text.find(".entry");
                if (entry == p.text.npos) {
                    skip_body();
                    continue;
                }
                out.emplace_back();
                code_ = &out.back();
                code_->file = std::filesystem::path(path_).filename();
                header(p.text.substr(entry + 6));
                body();
            } else if (p.text.starts_with(".extern .shared") || p.text.starts_with(".shared")) {
                const Variable v = variable(p.text);
                module_[v.name] = {p.text.starts_with(".extern") ? Fill::Dynamic : Fill::Shared, 0, 0,
                                   v.bytes};
            } else if (p.text.starts_with(".global") || p.text.starts_with(".const")) {
                constant(p.text);
            }
        }
        return out;
    }

  private:
    struct Piece {
        std::string text;
        char end;  // ; { } or : of a label
        int line;
    };
    struct Variable {
        std::string name;
        size_t align = 1, bytes = 0;
    };

    template <class... Args>
    [[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) const {
        throw Error(fmt::format("{}:{}: {}", path_, line_, fmt::format(text, std::forward<Args>(args)...)));
    }

    // Comments and directives for the debugger are left out.
    bool next(Piece& p) {
        p = {};
        int depth = 0;
        for (; at_ < text_.size(); at_++) {
            const char c = text_[at_];
            if (c == '\n') line_++;
            if (c == '/' && text_[at_ + 1] == '/') {
                at_ = text_.find('\n', at_) - 1;
                continue;
            }
            if (p.text.empty()) {
                if (isspace(static_cast<unsigned char>(c))) continue;
                p.line = line_;
                if (c == '{' || c == '}') return p.end = c, at_++, true;
                if (const auto rest = std::string_view(text_).substr(at_, 16);
                    rest.starts_with(".version") || rest.starts_with(".target") ||
                    rest.starts_with(".address_size")) {
                    at_ = text_.find('\n', at_) - 1;
                    continue;
                }
            }
            const bool header = p.text.find(".entry") != p.text.npos || p.text.find(".func") != p.text.npos;
            if (depth == 0 && (c == ';' || (header && c == '{') || (c == ':' && p.text[0] == '$')))
                return p.end = c, at_++, p.text = trim(p.text), true;
            depth += (c == '{') - (c == '}');
            p.text += isspace(static_cast<unsigned char>(c)) ? ' ' : c;
        }
        return false;
    }
    void skip_body() {
        int depth = 1;
        for (Piece p; depth && next(p);) depth += (p.end == '{') - (p.end == '}');
    }

    // ".param .align 8 .b8 name[16]" and the like.
    Variable variable(const std::string& text) const {
        Variable v;
        const Words words = split(text.substr(0, text.find('=')), ' ');
        for (size_t i = 0; i + 1 < words.size(); i++)
            if (words[i] == ".align") v.align = std::stoul(words[i + 1]);
        const std::string& last = words.back();
        const std::string& type = words[words.size() - 2];
        if (type.size() < 3 || !isdigit(static_cast<unsigned char>(type[2])))
            fail("a variable of type {}", type);
        const size_t size = std::stoul(type.substr(2)) / 8, bracket = last.find('[');
        v.name = last.substr(0, bracket);
        v.align = std::max(v.align, size);
        v.bytes = size;
        if (bracket != last.npos)
            v.bytes = last[bracket + 1] == ']' ? 0 : size * std::stoul(last.substr(bracket + 1));
        return v;
    }
    // An array of bytes with its values.
    void constant(const std::string& text) {
        const Variable v = variable(text);
        static std::vector<std::unique_ptr<std::vector<uint64_t>>> arrays;  // the code refers to these
        auto& array = *arrays.emplace_back(std::make_unique<std::vector<uint64_t>>((v.bytes + 7) / 8));
        const size_t brace = text.find('{');
        if (brace != text.npos) {
            if (text.find(".b8") == text.npos) fail("an array that is not of bytes has values");
            size_t i = 0;
            for (const std::string& byte : split(text.substr(brace + 1), ','))
                reinterpret_cast<uint8_t*>(array.data())[i++] = static_cast<uint8_t>(std::stoi(byte));
        }
        constants_[v.name] = std::bit_cast<uint64_t>(array.data());
    }

    void header(const std::string& text) {
        const size_t open = text.find('('), close = text.find(')');
        code_->name = plain_name(trim(text.substr(0, open)));
        scopes_.assign(1, {});
        if (const size_t at = text.find(".maxntid"); at != text.npos)
            code_->max_threads = static_cast<unsigned>(std::stoul(text.substr(at + 8)));
        if (open == text.npos) return;
        for (const std::string& param : split(text.substr(open + 1, close - open - 1), ',')) {
            const Variable v = variable(param);
            const size_t offset = (code_->param_bytes + v.align - 1) / v.align * v.align;
            code_->params.emplace_back(offset, v.bytes);
            code_->param_bytes = offset + v.bytes;
            symbol(v.name, {Fill::Param, 0, offset, v.bytes});
        }
    }

    void body() {
        labels_.clear();
        branches_.clear();
        for (Piece p; next(p);) {
            if (p.end == '{')
                scopes_.emplace_back();
            else if (p.end == '}') {
                scopes_.pop_back();
                if (scopes_.empty()) break;
            } else if (p.end == ':')
                labels_[p.text] = static_cast<int>(code_->ins.size());
            else if (p.text.starts_with(".reg"))
                registers(p.text);
            else if (p.text.starts_with(".shared")) {
                const Variable v = variable(p.text);
                symbol(v.name, {Fill::Shared, 0, 0, v.bytes});
            } else if (p.text.starts_with(".local") || p.text.starts_with(".param")) {
                const Variable v = variable(p.text);
                const size_t offset = (code_->local_bytes + v.align - 1) / v.align * v.align;
                code_->local_bytes = offset + v.bytes;
                symbol(v.name, {Fill::Local, 0, offset, v.bytes});
            } else if (!p.text.starts_with(".pragma"))
                instruction(p);
        }
        for (const auto& [index, label] : branches_) {
            if (!labels_.contains(label)) fail("no label {}", label);
            code_->ins[index].imm = labels_[label];
        }
        Ins end;
        decode(end, {"ret"}, "");
        code_->ins.push_back(end);
    }

    int new_slot() { return code_->n_slot++; }
    int symbol(const std::string& name, Fill fill) {
        fill.slot = new_slot();
        code_->fills.push_back(fill);
        return scopes_.back()[name] = fill.slot;
    }
    // "%f<20>" needs nothing: names with a % are made when they are met.
    void registers(const std::string& text) {
        const size_t type = text.find(" .");
        for (const std::string& name : split(text.substr(text.find(' ', type + 1)), ','))
            if (name[0] != '%') scopes_.back()[name] = new_slot();
    }

    int slot(const std::string& name) {
        if (name == "_") return kNoSlot;
        for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
            if (const auto found = scope->find(name); found != scope->end()) return found->second;
        auto& function = scopes_.front();
        std::optional<Fill> fill;
        const size_t dot = std::min(name.find('.'), name.size() - 1);
        static const std::map<std::string_view, Fill::Kind> special = {
            {"%tid", Fill::Tid}, {"%ctaid", Fill::Ctaid}, {"%ntid", Fill::Ntid}, {"%nctaid", Fill::Nctaid}};
        if (const auto found = special.find(std::string_view(name).substr(0, dot)); found != special.end())
            fill = {found->second, 0, static_cast<size_t>(name[dot + 1] - 'x')};
        if (const auto found = module_.find(name); found != module_.end()) fill = found->second;
        if (fill) {
            fill->slot = new_slot();
            code_->fills.push_back(*fill);
            return function[name] = fill->slot;
        }
        if (name[0] == '%') return function[name] = new_slot();
        std::optional<uint64_t> value;
        if (const auto found = constants_.find(name); found != constants_.end())
            value = found->second;
        else if (name.starts_with("0f") || name.starts_with("0F") || name.starts_with("0d") ||
                 name.starts_with("0D"))
            value = std::stoull(name.substr(2), nullptr, 16);
        else if (isdigit(static_cast<unsigned char>(name[0])))
            value = std::stoull(name, nullptr, 0);
        else if (name[0] == '-')
            value = -std::stoull(name.substr(1), nullptr, 0);
        if (!value) fail("what is {}?", name);
        code_->constants.emplace_back(new_slot(), *value);
        return function[name] = code_->constants.back().first;
    }

    // The operands in order, brackets and braces taken away.
    void operands(const std::string& text, Ins& i) {
        std::string word;
        std::vector<int> slots;
        const auto finish = [&] {
            word = trim(word);
            if (word.empty()) return;
            if (word[0] == '!') i.flip = true, word.erase(0, 1);
            if (const size_t plus = word.find('+'); plus != word.npos) {
                if (i.imm) fail("two addresses with an offset");
                i.imm = std::stoll(word.substr(plus + 1));
                word.resize(plus);
            }
            slots.push_back(slot(word));
            word.clear();
        };
        for (const char c : text)
            if (strchr(",[]{}|()", c))
                finish();
            else
                word += c;
        finish();
        i.n = static_cast<int>(slots.size());
        if (slots.size() <= i.r.size()) {
            std::copy(slots.begin(), slots.end(), i.r.begin());
        } else {
            static std::vector<std::unique_ptr<std::vector<int>>> lists;  // the code refers to these
            i.all = lists.emplace_back(std::make_unique<std::vector<int>>(std::move(slots))).get();
        }
    }

    void instruction(const Piece& p) {
        Ins i;
        i.line = p.line;
        std::string text = p.text;
        if (text[0] == '@') {
            const size_t space = text.find(' ');
            i.guard_is = text[1] != '!';
            i.guard = slot(text.substr(i.guard_is ? 1 : 2, space - (i.guard_is ? 1 : 2)));
            text = trim(text.substr(space));
        }
        const size_t space = std::min(text.find(' '), text.size());
        const Words words = split(text.substr(0, space), '.');
        std::string rest = trim(text.substr(space));
        if (words[0] == "bra")
            branches_.emplace_back(code_->ins.size(), rest);
        else  // of a call the arguments
            operands(words[0] == "call" ? rest.substr(rest.rfind('(')) : rest, i);
        if (!decode(i, words, rest)) fail("an instruction that is not known here: {}", p.text);
        code_->ins.push_back(i);
        code_->waits |= words[0] == "griddepcontrol" && words[1] == "wait";
    }

    std::string path_, text_;
    size_t at_ = 0;
    int line_ = 1;
    Code* code_ = nullptr;
    std::map<std::string, Fill> module_;
    std::map<std::string, uint64_t> constants_;
    std::vector<std::unordered_map<std::string, int>> scopes_;
    std::map<std::string, int> labels_;
    std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

std::string plain_name(std::string name) {
    for (size_t at; (at = name.find("_GLOBAL__N__")) != name.npos;) {
        size_t digits = at;
        while (digits > 0 && isdigit(static_cast<unsigned char>(name[digits - 1]))) digits--;
        name.replace(digits, at - digits + std::stoul(name.substr(digits, at - digits)), "12_GLOBAL__N_1");
    }
    return name;
}

std::vector<Code> read_file(const std::string& path) {
    return Reader(path).read();
}

}  // namespace easel::ptx
