// Threads that do tasks together: those of the process's OpenMP runtime, which torch has loaded, or else our own. A
// second pool beside torch's would fight it for the cores: OpenMP's threads spin for a while after each region.
#pragma once

namespace moe_local {

// Does body(context, task) once for every task from 0 to tasks - 1, on up to `threads` threads, and waits for all.
// Every thread begins with a run of neighbours, as memory is read fastest, and helps out with the others' then.
void run_tasks(int threads, int tasks, void (*body)(void* context, int task), void* context);

template <class Body>
void for_each(int threads, int tasks, const Body& body) {
    run_tasks(
        threads, tasks, [](void* context, int task) { (*static_cast<const Body*>(context))(task); },
        const_cast<Body*>(&body));
}

// Whose threads: "OpenMP" or "own".
const char* team_kind();

}  // namespace moe_local
