// help.h: what the command line tells of itself, all of it made from the one CLI::App that parses it, so that
// nothing can be out of date: --help, shell completion, the manual page. Used by main.
#pragma once
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <string_view>

namespace easel {

// Type names of options, which --help shows and completion goes by: a file; a file, or "-" for stdin or
// stdout; a GGUF file or a fetched model's name; the name of a model that can be fetched.
constexpr const char *kFile = "FILE", *kFileOrStream = "FILE|-", *kModel = "MODEL", *kListed = "NAME";

// --help of the program and of a command, 80 columns wide. Options in a group of their own are only named;
// the manual page describes them.
std::shared_ptr<CLI::FormatterBase> help_formatter();

// A script that completes the commands, flags and values of `app`; shell is bash, zsh or fish.
std::string completion_script(const CLI::App& app, std::string_view shell);

// The manual page, easel(1), in man(7) macros.
std::string manual_page(const CLI::App& app, std::string_view version);

}  // namespace easel
