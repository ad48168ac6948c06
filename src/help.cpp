// help.cpp: see help.h. describe() turns CLI11's options into plain texts; each of the three forms is a walk
// over them.
#include "help.h"

#include <algorithm>
#include <vector>

#include "check.h"

namespace easel {

namespace {

constexpr size_t kWidth = 80, kTextColumn = 28;
constexpr const char* kOptions = "Options";  // CLI11's group of options that have none

// An option, a flag or a positional as its user types it.
struct Described {
    std::vector<std::string> names;  // "-m", "--model"; empty: a positional only
    std::string positional;          // its name; empty: there is none
    std::string value;               // "MODEL", "N", "text|ids|json"; empty: a flag
    std::vector<std::string> choices;
    std::string text, group;
    bool required = false;
};

std::string join(const std::vector<std::string>& words, const char* between) {
    return fmt::format("{}", fmt::join(words, between));
}

Described describe(const CLI::Option& o) {
    Described d;
    for (const std::string& name : o.get_snames()) d.names.push_back("-" + name);
    for (const std::string& name : o.get_lnames()) d.names.push_back("--" + name);
    if (o.get_positional()) d.positional = o.get_name(true, false);
    d.text = o.get_description();
    d.group = o.get_group();
    d.required = o.get_required();
    if (o.get_items_expected_max() == 0) return d;
    // CLI11 appends what its checks expect: "TEXT:{text,ids,json}", "INT:INT in [1 - 4096]".
    const std::string type = o.get_type_name();
    const size_t open = type.find('{'), close = type.find('}');
    if (open != type.npos && close != type.npos) {
        std::string word;
        for (char c : type.substr(open + 1, close - open)) {
            if (c != ',' && c != '}') {
                word += c;
            } else {
                d.choices.push_back(word);
                word.clear();
            }
        }
        d.value = join(d.choices, "|");
    } else {
        d.value = type.substr(0, type.find(':'));
        if (d.value == "INT" || d.value == "UINT") d.value = "N";
        if (d.value == "FLOAT") d.value = "X";
    }
    return d;
}

std::vector<Described> describe_all(const CLI::App& app) {
    std::vector<Described> all;
    for (const CLI::Option* o : app.get_options()) all.push_back(describe(*o));
    return all;
}

// In the order of their first options.
std::vector<std::string> groups_of(const std::vector<Described>& all) {
    std::vector<std::string> groups;
    for (const Described& d : all)
        if (!d.group.empty() && std::find(groups.begin(), groups.end(), d.group) == groups.end())
            groups.push_back(d.group);
    return groups;
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
    return app.get_subcommands([](const CLI::App*) { return true; });
}

// ---- --help

// `text` in lines of at most kWidth, each after `indent` blanks.
std::string wrap(const std::string& text, size_t indent) {
    std::string out, line;
    const auto end_line = [&] {
        line.erase(line.find_last_not_of(' ') + 1);
        if (!line.empty()) out += std::string(indent, ' ') + line + "\n";
        line.clear();
    };
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find_first_of(" \n", at), text.size());
        const std::string word = text.substr(at, end - at);
        if (!line.empty() && indent + line.size() + 1 + word.size() > kWidth) end_line();
        line += (line.empty() ? "" : " ") + word;
        if (end < text.size() && text[end] == '\n') end_line();
        at = end + 1;
    }
    end_line();
    return out;
}

std::string entry(const std::string& left, const std::string& text) {
    const std::string right = wrap(text, kTextColumn);
    const std::string begin = "  " + left;
    if (begin.size() + 2 > kTextColumn || right.empty()) return begin + "\n" + right;
    return begin + right.substr(begin.size());
}

std::string left_column(const Described& d) {
    std::string left = d.positional;
    if (!d.names.empty()) left += (left.empty() ? "" : ", ") + join(d.names, ", ");
    // A positional's name is enough, unless it is one of a few words.
    if (d.value.empty() || (d.names.empty() && d.choices.empty())) return left;
    return left + " " + d.value;
}

class HelpFormatter : public CLI::FormatterBase {
    std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const override {
        const std::vector<Described> all = describe_all(*app);
        const std::vector<const CLI::App*> commands = commands_of(*app);
        std::string usage = "usage: easel";
        for (const CLI::App* a = app; a->get_parent(); a = a->get_parent()) usage += " " + a->get_name();
        usage += commands.empty() ? " [OPTION...]" : " COMMAND [OPTION...]";
        for (const Described& d : all)
            if (!d.positional.empty()) usage += d.required ? " " + d.positional : " [" + d.positional + "]";
        std::string out = usage + "\n" + wrap(app->get_description(), 0) + "\n";

        if (!commands.empty()) {
            for (const CLI::App* c : commands) out += entry(c->get_name(), c->get_description());
            out += "\n";
        }
        for (const std::string& group : groups_of(all)) {
            const bool brief = group != kOptions;
            std::vector<std::string> names;
            for (const Described& d : all) {
                if (d.group != group) continue;
                if (brief)
                    names.push_back(left_column(d));
                else
                    out +=
                        entry(left_column(d), d.text + (d.required && !d.names.empty() ? " (required)" : ""));
            }
            if (brief) out += "\n" + group + ", see man easel:\n" + wrap(join(names, "  "), 2);
        }
        if (!app->get_footer().empty()) out += "\n" + app->get_footer() + "\n";
        return out;
    }
};

// ---- Completion

// A command that prints the names that `easel fetch` lists, for all three shells.
constexpr const char* kListModels = "easel fetch 2>/dev/null | sed -n 's/^  \\([^ ]*\\) .*/\\1/p'";

enum class Values { None, Files, Models, Listed, Choices };

Values values_of(const Described& d) {
    const bool file = d.value == kFile || d.value == kFileOrStream;
    return !d.choices.empty()   ? Values::Choices
           : d.value == kModel  ? Values::Models
           : d.value == kListed ? Values::Listed
           : file               ? Values::Files
                                : Values::None;
}

std::string bash_values(const Described& d) {
    switch (values_of(d)) {
        case Values::Choices:
            return fmt::format("COMPREPLY=($(compgen -W \"{}\" -- \"$cur\"))", join(d.choices, " "));
        case Values::Models:
            return "_easel_files; COMPREPLY+=($(compgen -W \"$(_easel_models)\" -- \"$cur\"))";
        case Values::Listed:
            return "COMPREPLY=($(compgen -W \"$(_easel_models)\" -- \"$cur\"))";
        case Values::Files:
            return "_easel_files";
        case Values::None:
            break;
    }
    return ":";
}

std::string bash_completion(const CLI::App& app) {
    std::string out =
        "# bash completion of easel; made by `easel completion bash`\n"
        "_easel_files() { local IFS=$'\\n'; compopt -o filenames; COMPREPLY=($(compgen -f -- \"$cur\")); }\n";
    out += fmt::format("_easel_models() {{ {}; }}\n", kListModels);
    out +=
        "_easel() {\n"
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=\n"
        "    local command=${COMP_WORDS[1]}\n"
        "    [ \"$COMP_CWORD\" -gt 1 ] || command=\n"
        "    COMPREPLY=()\n"
        "    case $command in\n";
    std::vector<std::string> first;
    for (const CLI::App* c : commands_of(app)) first.push_back(c->get_name());
    for (const Described& d : describe_all(app)) first.insert(first.end(), d.names.begin(), d.names.end());
    out += fmt::format("    \"\") words=\"{}\" ;;\n", join(first, " "));
    for (const CLI::App* c : commands_of(app)) {
        out += fmt::format("    {})\n        case $prev in\n", c->get_name());
        std::vector<std::string> words;
        std::string positional;
        for (const Described& d : describe_all(*c)) {
            words.insert(words.end(), d.names.begin(), d.names.end());
            if (!d.value.empty() && !d.names.empty())
                out += fmt::format("        {}) {}; return ;;\n", join(d.names, "|"), bash_values(d));
            if (!d.positional.empty() && positional.empty()) positional = bash_values(d);
        }
        out += "        esac\n";
        if (!positional.empty())
            out += fmt::format("        [[ $cur == -* ]] || {{ {}; return; }}\n", positional);
        out += fmt::format("        words=\"{}\" ;;\n", join(words, " "));
    }
    return out +
           "    esac\n"
           "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
           "}\n"
           "complete -F _easel easel\n";
}

// For a word in single quotes, as both zsh and fish read it; `special` gets a backslash as well.
std::string quoted(const std::string& text, std::string_view special, bool fish) {
    std::string out;
    for (char c : text) {
        if (c == '\'')
            out += fish ? "\\'" : "'\\''";
        else
            out += (special.find(c) != special.npos ? "\\" : "") + std::string(1, c);
    }
    return out;
}

std::string zsh_completion(const CLI::App& app) {
    std::string out = "#compdef easel\n# zsh completion of easel; made by `easel completion zsh`\n";
    out +=
        fmt::format("_easel_listed() {{ compadd -- $({}); }}\n_easel_models() {{ _easel_listed; _files; }}\n",
                    kListModels);
    const auto action = [](const Described& d) {
        switch (values_of(d)) {
            case Values::Choices:
                return "(" + join(d.choices, " ") + ")";
            case Values::Models:
                return std::string("_easel_models");
            case Values::Listed:
                return std::string("_easel_listed");
            case Values::Files:
                return std::string("_files");
            case Values::None:
                break;
        }
        return std::string(" ");
    };
    const auto arguments = [&](const CLI::App& a) {
        std::string s = "_arguments";
        for (const Described& d : describe_all(a)) {
            const std::string text = quoted(d.text, "[]:\\", false);
            for (const std::string& name : d.names)
                s += fmt::format(" \\\n            '({}){}[{}]{}'", join(d.names, " "), name, text,
                                 d.value.empty() ? "" : ":" + d.value + ":" + action(d));
            if (!d.positional.empty()) s += fmt::format(" \\\n            ':{}:{}'", d.positional, action(d));
        }
        return s + "\n";
    };
    out +=
        "_easel() {\n"
        "    if (( CURRENT == 2 )); then\n"
        "        local -a commands=(\n";
    for (const CLI::App* c : commands_of(app))
        out +=
            fmt::format("            '{}:{}'\n", c->get_name(), quoted(c->get_description(), ":\\", false));
    out += "        )\n        _describe command commands\n        " + arguments(app) +
           "        return\n    fi\n";
    out += "    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in\n";
    for (const CLI::App* c : commands_of(app))
        out += fmt::format("    {})\n        {}        ;;\n", c->get_name(), arguments(*c));
    return out + "    esac\n}\n_easel \"$@\"\n";
}

std::string fish_completion(const CLI::App& app) {
    std::string out = "# fish completion of easel; made by `easel completion fish`\ncomplete -c easel -f\n";
    const auto values = [](const Described& d) -> std::string {
        switch (values_of(d)) {
            case Values::Choices:
                return fmt::format(" -x -a '{}'", join(d.choices, " "));
            case Values::Models:
                return fmt::format(" -r -F -a '({})'", quoted(kListModels, "\\", true));
            case Values::Listed:
                return fmt::format(" -x -a '({})'", quoted(kListModels, "\\", true));
            case Values::Files:
                return " -r -F";
            case Values::None:
                break;
        }
        return " -x";
    };
    const auto options = [&](const CLI::App& a, const std::string& when) {
        for (const Described& d : describe_all(a)) {
            std::string line = "complete -c easel -n '" + when + "'";
            if (!d.names.empty()) {
                for (const std::string& name : d.names)
                    line += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
                out +=
                    line + (d.value.empty() ? "" : values(d)) + " -d '" + quoted(d.text, "\\", true) + "'\n";
            }
            if (!d.positional.empty() && values_of(d) != Values::None)
                out += "complete -c easel -n '" + when + "'" + values(d) + "\n";
        }
    };
    options(app, "__fish_use_subcommand");
    for (const CLI::App* c : commands_of(app)) {
        out += fmt::format("complete -c easel -n __fish_use_subcommand -a {} -d '{}'\n", c->get_name(),
                           quoted(c->get_description(), "\\", true));
        options(*c, "__fish_seen_subcommand_from " + c->get_name());
    }
    return out;
}

// ---- The manual page

std::string roff(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        const char c = text[i];
        if ((c == '.' || c == '\'') && (i == 0 || text[i - 1] == '\n')) out += "\\&";
        out += c == '\\'   ? "\\e"
               : c == '-'  ? "\\-"
               : c == '\'' ? "\\(aq"
               : c == '`'  ? "\\(ga"
                           : std::string(1, c);
    }
    return out;
}

std::string roff_option(const Described& d) {
    std::vector<std::string> names;
    if (!d.positional.empty()) names.push_back("\\fI" + roff(d.positional) + "\\fR");
    for (const std::string& name : d.names) names.push_back("\\fB" + roff(name) + "\\fR");
    std::string out = ".TP\n" + join(names, ", ");
    if (!d.value.empty() && (!d.names.empty() || !d.choices.empty())) out += " \\fI" + roff(d.value) + "\\fR";
    return out + "\n" + roff(d.text) + (d.required ? " (required)" : "") + "\n";
}

std::string roff_options(const CLI::App& app) {
    const std::vector<Described> all = describe_all(app);
    std::string out;
    for (const std::string& group : groups_of(all)) {
        if (group != kOptions) out += ".PP\n" + roff(group) + ":\n";
        for (const Described& d : all)
            if (d.group == group) out += roff_option(d);
    }
    return out;
}

// A footer: "Example:" and lines of a shell.
std::string roff_example(const std::string& footer) {
    return footer.empty() ? "" : ".PP\n.nf\n" + roff(footer) + "\n.fi\n";
}

}  // namespace

std::shared_ptr<CLI::FormatterBase> help_formatter() {
    return std::make_shared<HelpFormatter>();
}

std::string completion_script(const CLI::App& app, std::string_view shell) {
    if (shell == "bash") return bash_completion(app);
    if (shell == "zsh") return zsh_completion(app);
    require(shell == "fish", "shell is {}, expected bash, zsh or fish", shell);
    return fish_completion(app);
}

std::string manual_page(const CLI::App& app, std::string_view version) {
    std::string out = fmt::format(
        ".TH EASEL 1 \"\" \"easel {}\" \"User Commands\"\n"
        ".SH NAME\neasel \\- {}\n"
        ".SH SYNOPSIS\n.B easel\n\\fICOMMAND\\fR [\\fIOPTION\\fR...]\n"
        ".SH DESCRIPTION\n",
        roff(version), "run DiffusionGemma models from GGUF files");
    out += roff(app.get_description()) +
           "\nThe text goes to stdout and everything else to stderr. Without \\fB\\-m\\fR the built\\-in "
           "demo model is used.\n";
    out += roff_options(app) + roff_example(app.get_footer()) + ".SH COMMANDS\n";
    for (const CLI::App* c : commands_of(app))
        out += ".SS easel " + roff(c->get_name()) + "\n" + roff(c->get_description()) + "\n" +
               roff_options(*c) + roff_example(c->get_footer());
    return out +
           ".SH EXIT STATUS\n"
           ".TP\n\\fB0\\fR\nSuccess; also if the reader of stdout has gone.\n"
           ".TP\n\\fB1\\fR\nAn error in a file, a flag or a request; one line on stderr says what was "
           "wrong.\n"
           ".TP\n\\fB130\\fR\nStopped by Ctrl\\-C; \\fB143\\fR: \\fBeasel pipe\\fR, \\fBfetch\\fR or "
           "\\fBconvert\\fR stopped by SIGTERM; \\fB129\\fR: \\fBconvert\\fR stopped by SIGHUP.\n"
           ".SH ENVIRONMENT\n"
           ".TP\n\\fBEASEL_MODELS\\fR\nThe folder for fetched models; default: "
           "\\fI$XDG_CACHE_HOME/easel\\fR, "
           "else \\fI~/.cache/easel\\fR.\n"
           ".TP\n\\fBEASEL_MODELS_TXT\\fR\nA file that lists models, used in place of the built\\-in list.\n"
           ".TP\n\\fBXDG_STATE_HOME\\fR\nThe lines typed into \\fBeasel chat\\fR are kept in its "
           "\\fIeasel/history\\fR, "
           "else in \\fI~/.local/state/easel/history\\fR.\n"
           ".TP\n\\fBNO_COLOR\\fR\nIf set and not empty, no colours are used unless \\fB\\-\\-color\\fR "
           "asks for them.\n";
}

}  // namespace easel
