// chat_command.cpp: `easel chat`: a conversation in a terminal or through pipes. Answers go to stdout,
// everything else to stderr. Called by main.
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "check.h"
#include "commands.h"
#include "json_depth.h"
#include "line_input.h"
#include "models.h"
#include "text.h"
#include "whole_file.h"

namespace easel {

namespace {

volatile std::sig_atomic_t interrupted = 0, answering = 0;

// Ctrl-C ends the answer that is running, or the line that is being typed. A second one, before the step in
// flight is done, ends the program at once.
void on_interrupt(int) {
    if (answering && interrupted) {
        abandon_view();
        std::signal(SIGINT, SIG_DFL);
        std::raise(SIGINT);
    }
    interrupted = 1;
    LineInput::interrupt();
}

constexpr std::string_view kQuotes = "\"\"\"";

// ---- Conversations in files: {"messages": [{"role": "user", "content": "..."}, ...]}, as in `easel pipe`

constexpr size_t kFileBytes = 64'000'000;

std::vector<Message> read_messages(const std::string& path) {
    const std::string text = read_file(path, kFileBytes);
    check_json(text, path);
    const auto json = nlohmann::json::parse(text, nullptr, false);
    require(!json.is_discarded(), "{}: is not valid JSON, expected what /save writes", path);
    const auto list = json.is_object() ? json.find("messages") : json.end();
    require(json.is_object() && list != json.end() && list->is_array(),
            "{}: has no array \"messages\", expected what /save writes", path);
    std::vector<Message> messages;
    for (const auto& item : *list) {
        const size_t n = messages.size() + 1;
        const auto string = [&](const char* key) {
            const bool there = item.is_object() && item.contains(key) && item[key].is_string();
            require(there, "{}: message {} has no string \"{}\"", path, n, key);
            return item[key].get<std::string>();
        };
        const std::string name = string("role");
        const std::optional<Role> role = role_by_name(name);
        require(role && (role != Role::System || n == 1),
                "{}: message {} has the role \"{}\", expected user or assistant, or system for the first",
                path, n, name.substr(0, 40));
        messages.push_back({*role, string("content")});
    }
    return messages;
}

void write_messages(const std::string& path, std::span<const Message> messages) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Message& m : messages) list.push_back({{"role", role_name(m.role)}, {"content", m.content}});
    write_file(path, nlohmann::ordered_json{{"messages", std::move(list)}}.dump(2) + "\n");
}

// What a shell would make of a leading ~/.
std::string file_path(std::string_view argument) {
    const char* home = std::getenv("HOME");
    if (argument.starts_with("~/") && home) return home + std::string(argument.substr(1));
    return std::string(argument);
}

// ---- The conversation

class Chat {
  public:
    Chat(Engine& engine, const ChatFlags& flags, const SamplerConfig& sampler)
        : engine_(engine),
          flags_(flags),
          sampler_(sampler),
          input_(HistoryFile(flags.history ? history_path() : "")),
          dim_(use_color(flags.view.color, STDERR_FILENO)),
          think_(flags.think),
          seed_(flags.seed) {
        if (!flags.system.empty()) set_system(flags.system);
        if (think_) check_think();
    }

    int run() {
        if (input_.from_terminal())
            tell(fmt::format(
                "{} on {}, a context of {} tokens. /help lists the commands, Ctrl-D ends.\n",
                flags_.engine.model.empty() ? "The built-in demo model" : engine_.model().file->name(),
                engine_.device(), engine_.n_context()));
        std::string text;
        while (!done_ && read_message(text)) {
            try {
                if (text.starts_with('/'))
                    command(text);
                else if (!is_blank(text))
                    answer(text);
            } catch (const DeviceError&) {
                throw;  // the next question could not be answered either
            } catch (const Error& e) {
                report(e.what());
            }
        }
        if (interrupted && !input_.from_terminal()) return kInterrupted;
        return failed_ && !input_.from_terminal() ? 1 : 0;
    }

  private:
    void say(std::string_view text) { tell(fmt::format("{}\n", text)); }
    void note(std::string_view text) {
        tell(fmt::format("{}{}{}\n", dim_ ? "\033[2m" : "", text, dim_ ? "\033[0m" : ""));
    }
    // What went wrong, on one line whatever bytes are in it; the conversation goes on.
    void report(std::string_view text) {
        failed_ = true;
        say(fmt::format("easel: {}", safe_line(text)));
    }

    // Reads one line, lines joined by a backslash at their end, or what stands between two """. False: there
    // is no more.
    bool read_message(std::string& text) {
        text.clear();
        bool quoted = false, more = false, lost = false;
        for (std::string line;;) {
            interrupted = interrupted && !input_.from_terminal();
            if (interrupted) return false;
            switch (input_.read(quoted || more ? ". " : "> ", line)) {
                case LineInput::Got::Line:
                    break;
                case LineInput::Got::TooLong:  // drops its whole message, up to the closing """
                    report(fmt::format("the line is longer than {} bytes", kLineBytes));
                    text.clear();
                    lost = quoted && !input_.from_terminal();
                    quoted = more = false;
                    continue;
                case LineInput::Got::Interrupted:
                    if (!input_.from_terminal()) return false;
                    text.clear();
                    quoted = more = false;
                    continue;
                case LineInput::Got::End:
                    if (quoted) report("the input ended before the closing \"\"\"");
                    return more && !quoted;
            }
            std::string_view part = line;
            if (lost) {
                lost = !part.ends_with(kQuotes);
                continue;
            }
            const bool first = text.empty() && !quoted && !more;
            if (first && part.starts_with(kQuotes)) {
                quoted = true;
                part.remove_prefix(kQuotes.size());
                if (part.empty()) continue;
            }
            if (quoted) {
                const bool end = part.ends_with(kQuotes);
                text += part.substr(0, part.size() - (end ? kQuotes.size() : 0));
                // Blanks in front make a quoted text that begins with a slash a message, not a command.
                if (end) {
                    if (text.starts_with('/')) text = fmt::format(" {}", text);
                    return true;
                }
                text += '\n';
                continue;
            }
            more = part.ends_with('\\');
            text += part.substr(0, part.size() - more);
            if (!more) return true;
            text += '\n';
        }
    }

    // ---- Answers

    // What one answer took, or all of them together.
    static std::string figures(int64_t n_reused, int64_t n_prompt, int64_t n_step, int64_t n_token,
                               double ms) {
        return fmt::format("reused {} of {} prompt tokens | {}, {:.0f} ms | {}, {:.0f} tok/s", n_reused,
                           n_prompt, counted(n_step, "step"), ms, counted(n_token, "token"),
                           ms > 0 ? static_cast<double>(n_token) * 1000 / ms : 0.0);
    }

    Request request(std::string text) const {
        Request r;
        if (!system_.empty()) r.messages.push_back({Role::System, system_});
        r.messages.insert(r.messages.end(), turns_.begin(), turns_.end());
        r.messages.push_back({Role::User, std::move(text)});
        r.think = think_;
        r.sampler = sampler_;
        r.seed = seed_;
        r.n_token = flags_.n_token;
        return r;
    }

    void answer(const std::string& text) {
        Request r = request(text);
        r.prompt_ids = engine_.prompt_ids(r);
        r.messages.clear();
        const int room = engine_.room(r.prompt_ids.size());
        require(
            room > 0 || turns_.empty(),
            "the context of {} tokens is full: the prompt would have {}, and an answer needs {} more; /drop "
            "forgets the oldest turn, /clear all of them",
            engine_.n_context(), r.prompt_ids.size(), engine_.model().config.n_canvas);
        if (room > 0) r.n_token = std::min(r.n_token, room);  // else the engine says what is too long

        View view(engine_.tokenizer(), flags_.view, sampler_.max_steps, false);
        interrupted = 0;
        answering = 1;
        const auto keep_going = [&] { return !interrupted; };
        Result result;
        try {
            result = engine_.generate(
                r,
                [&](const Frame& f) {
                    view.frame(f);
                    return keep_going();
                },
                [&](int done, int total) {
                    view.encoding(done, total);
                    return keep_going();
                });
        } catch (...) {
            answering = 0;
            throw;
        }
        answering = 0;
        view.finish();
        result.denoise_ms = std::max(0.0, result.denoise_ms - view.paused_ms());
        n_drawn_ += view.n_drawn();
        n_frame_ += view.n_frame();
        view_ms_ += view.spent_ms();
        show(text, result);
    }

    void show(const std::string& text, const Result& r) {
        const bool cancelled = r.finish == Finish::Cancelled;
        if (!r.thought.empty()) note(fmt::format("thought: {}", terminal_text(r.thought)));
        if (!cancelled || !r.text.empty()) {
            const std::string out = isatty(STDOUT_FILENO) ? terminal_text(r.text) : r.text;
            if (!write_stdout(out + "\n")) done_ = true;
        }
        const int n_step = r.n_step();
        const double ms = r.encode_ms + r.denoise_ms + r.commit_ms;
        n_step_ += n_step;
        ms_ += ms;
        n_prompt_ += r.n_prompt;
        n_reused_ += r.n_reused;
        n_token_ += static_cast<int64_t>(r.ids.size());
        last_ = figures(r.n_reused, r.n_prompt, n_step, r.ids.size(), ms);
        note(last_);
        if (!r.note.empty()) note(r.note);
        if (r.finish == Finish::Length) note("cut: the answer has reached its maximum length");
        // Finished canvases of a stopped answer are kept; if there is none, the question is forgotten too.
        const bool kept = !cancelled || !r.text.empty();
        if (cancelled) note(kept ? "stopped: what is above is kept" : "stopped: the question is forgotten");
        if (!kept) return;
        turns_.push_back({Role::User, text});
        turns_.push_back({Role::Model, valid_utf8(r.text)});  // a cut answer can end inside a character
        n_used_ = r.n_prompt + static_cast<int>(r.ids.size());
    }

    // ---- Commands

    struct Command {
        const char *name, *argument, *help;
        void (Chat::*run)(std::string_view argument);
    };
    static std::span<const Command> commands() {
        static constexpr Command list[] = {
            {"/clear", "", "forget the conversation; keep the system prompt", &Chat::clear},
            {"/drop", "[N]", "forget the N oldest turns (default: 1)", &Chat::drop},
            {"/system", "[TEXT]", "set the system prompt; - clears it; without TEXT, show it", &Chat::system},
            {"/think", "on|off", "let the model think first", &Chat::think},
            {"/seed", "N", "set the random seed of the next answers", &Chat::seed},
            {"/save", "FILE", "write the conversation as JSON", &Chat::save},
            {"/load", "FILE", "continue a saved conversation", &Chat::load},
            {"/stats", "", "show the figures of all answers so far", &Chat::stats},
            {"/help", "", "show this list", &Chat::help},
            {"/quit", "", "end the chat, as Ctrl-D does", &Chat::quit},
        };
        return list;
    }

    void command(std::string_view line) {
        const std::string_view name = line.substr(0, line.find_first_of(" \t\n"));
        const std::string_view argument = trim(line.substr(name.size()));
        std::vector<std::string> names;
        for (const Command& c : commands()) {
            names.push_back(c.name);
            if (name != c.name) continue;
            require(argument.empty() || *c.argument, "{} takes no argument, got \"{}\"", name, argument);
            return (this->*c.run)(argument);
        }
        const std::string nearest = nearest_name(name, names);
        fail(
            "there is no command {}{}; /help lists them (a message that begins with / needs a space "
            "before it)",
            name.substr(0, 40), nearest.empty() ? "" : ", the nearest is " + nearest);
    }

    void clear(std::string_view) {
        turns_.clear();
        n_used_ = 0;
        note("a new conversation");
    }

    void drop(std::string_view argument) {
        const size_t n_turn = turns_.size() / 2;
        require(n_turn > 0, "there are no turns to drop");
        const size_t n = argument.empty() ? 1 : parse_number(argument, "/drop", 1, n_turn);
        turns_.erase(turns_.begin(), turns_.begin() + static_cast<std::ptrdiff_t>(2 * n));
        n_used_ = 0;
        note(counted(n_turn - n, "turn") + " left");
    }

    void system(std::string_view argument) {
        if (argument == "-")
            system_.clear();
        else if (!argument.empty())
            set_system(std::string(argument));
        if (!argument.empty()) n_used_ = 0;
        note(system_.empty() ? "no system prompt" : fmt::format("system prompt: {}", terminal_text(system_)));
    }
    void set_system(std::string text) {
        require_utf8(text, "the system prompt");
        system_ = std::move(text);
    }

    void think(std::string_view argument) {
        require(argument == "on" || argument == "off", "/think got {}, expected on or off", given(argument));
        if (argument == "on") check_think();
        think_ = argument == "on";
        note(fmt::format("thinking is {}", argument));
    }
    void check_think() const {
        require(engine_.tokenizer().find("<|think|>").has_value(),
                "this model cannot think: its vocabulary lacks the token <|think|>");
    }

    static std::string given(std::string_view argument) {
        return argument.empty() ? "nothing" : fmt::format("\"{}\"", argument);
    }
    static uint64_t parse_number(std::string_view text, const char* command, uint64_t low, uint64_t high) {
        uint64_t n = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
        const bool is_number = error == std::errc() && end == text.data() + text.size();
        require(is_number && n >= low && n <= high, "{} got {}, expected {} to {}", command, given(text), low,
                high);
        return n;
    }
    void seed(std::string_view argument) {
        seed_ = parse_number(argument, "/seed", 0, UINT64_MAX);
        note(fmt::format("seed {}", seed_));
    }

    void save(std::string_view argument) {
        require(!argument.empty(), "/save got nothing, expected a file name");
        const std::string path = file_path(argument);
        require_other(path, engine_.model().file->files(), "the model itself");
        std::vector<Message> all = turns_;
        if (!system_.empty()) all.insert(all.begin(), {Role::System, system_});
        write_messages(path, all);
        note(fmt::format("{} written to {}", counted(all.size(), "message"), path));
    }

    void load(std::string_view argument) {
        require(!argument.empty(), "/load got nothing, expected a file name");
        const std::string path = file_path(argument);
        std::vector<Message> all = read_messages(path);
        std::string system;
        const bool has_system = !all.empty() && all[0].role == Role::System;
        if (has_system) {
            system = std::move(all[0].content);
            all.erase(all.begin());
        }
        for (size_t i = 0; i < all.size(); i++)
            require(all[i].role == (i % 2 ? Role::Model : Role::User),
                    "{}: message {} is the {}'s, expected user and assistant in turn", path,
                    i + 1 + has_system, role_name(all[i].role));
        require(all.size() % 2 == 0, "{}: the last message is the user's, expected an answer to it", path);
        note(fmt::format("{} read from {}", counted(all.size() + has_system, "message"), path));
        turns_ = std::move(all);
        system_ = std::move(system);
        n_used_ = 0;
    }

    void stats(std::string_view) {
        const size_t n_turn = turns_.size() / 2;
        say(fmt::format(
            "{}{}; seed {}, thinking {}", counted(n_turn, "turn"),
            n_used_ ? fmt::format(", {} of {} tokens of context", n_used_, engine_.n_context()) : "", seed_,
            think_ ? "on" : "off"));
        if (last_.empty()) return;
        say(fmt::format("last: {}", last_));
        say(fmt::format("so far: {}", figures(n_reused_, n_prompt_, n_step_, n_token_, ms_)));
        if (n_frame_)
            say(fmt::format("view: {} of {} steps drawn, {:.1f} ms, {:.2f} % of the time", n_drawn_, n_frame_,
                            view_ms_, ms_ > 0 ? view_ms_ * 100 / ms_ : 0.0));
    }

    void help(std::string_view) {
        for (const Command& c : commands())
            say(fmt::format("{:<16}{}", fmt::format("{} {}", c.name, c.argument), c.help));
        say("A line that ends in \\ continues on the next; \"\"\" begins and ends a text of several lines.\n"
            "Ctrl-C stops an answer; its finished canvases are kept.");
    }

    void quit(std::string_view) { done_ = true; }

    Engine& engine_;
    const ChatFlags& flags_;
    const SamplerConfig sampler_;
    LineInput input_;
    const bool dim_;
    bool think_;
    uint64_t seed_;
    std::string system_;
    std::vector<Message> turns_;  // the user's and the model's in turn
    bool done_ = false, failed_ = false;

    std::string last_;  // figures of the last answer; below, those of all
    int n_used_ = 0, n_drawn_ = 0, n_frame_ = 0;
    int64_t n_prompt_ = 0, n_reused_ = 0, n_token_ = 0, n_step_ = 0;
    double ms_ = 0, view_ms_ = 0;
};

}  // namespace

int run_chat(const ChatFlags& flags) {
    set_utf8_locale();
    Engine engine = open_engine(flags.engine);
    SamplerConfig sampler = engine.model().config.sampler;
    for (const auto& change : flags.sampler_changes) change(sampler);
    check_sampler(sampler);
    warn(engine.model());
    Chat chat(engine, flags, sampler);
    std::signal(SIGINT, on_interrupt);
    return chat.run();
}

}  // namespace easel
