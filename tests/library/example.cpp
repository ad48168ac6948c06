// Answers each line of stdin on stdout: a whole program that uses easel as a library, with nothing but
// easel.h. Built against an installed tree and run by tests/install.sh. Usage: example [MODEL.gguf [THREADS]]
// <questions
#include <easel/easel.h>

#include <exception>
#include <iostream>
#include <string>

int main(int argc, char** argv) {
    try {
        easel::EngineOptions options;  // no model named: the built-in demo model
        if (argc > 1) options.model = argv[1];
        if (argc > 2) options.n_thread = std::stoi(argv[2]);
        easel::Engine engine(options);
        for (std::string line; std::getline(std::cin, line);) {
            easel::Request request;
            request.messages.push_back({easel::Role::User, line});
            const easel::Result result = engine.generate(request);
            std::cout << result.text << "\n";
        }
    } catch (const std::exception& e) {  // easel::Error is one: a broken file, a prompt that is too long
        std::cerr << "example: " << e.what() << "\n";
        return 1;
    }
}
