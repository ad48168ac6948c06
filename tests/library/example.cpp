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
            try {
                std::cout << engine.generate(request).text << "\n";
            } catch (const easel::DeviceError&) {
                throw;                         // the GPU is lost: nor could the next line be answered
            } catch (const easel::Error& e) {  // of this line: it is empty, or too long
                std::cout << "error: " << e.what() << "\n";
            }
        }
    } catch (const std::exception& e) {  // a broken file, a lost GPU, no number of threads
        std::cerr << "example: " << e.what() << "\n";
        return 1;
    }
}
