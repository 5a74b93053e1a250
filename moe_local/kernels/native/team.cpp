#include "team.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace moe_local {
namespace {

constexpr int MOST_THREADS = 256;

// The tasks of one call, cut into a run for each thread.
class Tasks {
  public:
    Tasks(int threads, int tasks, void (*body)(void*, int), void* context)
        : threads_(threads), body_(body), context_(context) {
        for (int t = 0; t < threads; t++) {
            runs_[t].next = int(int64_t(tasks) * t / threads);
            runs_[t].end = int(int64_t(tasks) * (t + 1) / threads);
        }
    }

    void help(int thread) {
        for (int i = 0; i < threads_; i++) {
            Run& run = runs_[(thread + i) % threads_];
            while (run.next.load(std::memory_order_relaxed) < run.end) {
                const int task = run.next.fetch_add(1, std::memory_order_relaxed);
                if (task < run.end) body_(context_, task);
            }
        }
    }

  private:
    struct alignas(64) Run {
        std::atomic<int> next{0};
        int end = 0;
    };

    int threads_;
    void (*body_)(void*, int);
    void* context_;
    Run runs_[MOST_THREADS];
};

// OpenMP's entry for compiled regions, that GNU's and LLVM's runtimes both have: found in the process, not linked to.
struct OpenMp {
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    using ThreadNumber = int (*)();

    Parallel parallel = nullptr;
    ThreadNumber thread_number = nullptr;

    OpenMp() {
#if !defined(_WIN32)
        parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        thread_number = reinterpret_cast<ThreadNumber>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
#endif
    }

    bool found() const { return parallel && thread_number; }
};

const OpenMp& openmp() {
    static const OpenMp found;
    return found;
}

// Threads of our own, started once and asleep between calls.
class Pool {
  public:
    void run(Tasks& tasks, int threads) {
        const std::lock_guard<std::mutex> one_at_a_time(calls_);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            while (int(workers_.size()) < threads - 1) {
                const int number = int(workers_.size()) + 1;
                workers_.emplace_back([this, number] { work(number); });
            }
            tasks_ = &tasks;
            wanted_ = left_ = threads - 1;
            turn_++;
        }
        wake_.notify_all();
        tasks.help(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return left_ == 0; });
    }

  private:
    void work(int number) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return turn_ != seen && number <= wanted_; });
            seen = turn_;
            Tasks* tasks = tasks_;
            lock.unlock();
            tasks->help(number);
            lock.lock();
            if (--left_ == 0) done_.notify_one();
        }
    }

    std::mutex calls_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Tasks* tasks_ = nullptr;
    int wanted_ = 0, left_ = 0;
    uint64_t turn_ = 0;
};

void help_openmp(void* tasks) { static_cast<Tasks*>(tasks)->help(openmp().thread_number()); }

}  // namespace

void run_tasks(int threads, int tasks, void (*body)(void*, int), void* context) {
    threads = threads < tasks ? threads : tasks;
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    if (threads <= 1) {
        for (int task = 0; task < tasks; task++) body(context, task);
        return;
    }
    Tasks all(threads, tasks, body, context);
    if (openmp().found()) {
        openmp().parallel(help_openmp, &all, unsigned(threads), 0);
    } else {
        static Pool& pool = *new Pool;  // never ended: a process that ends may have ended its threads before
        pool.run(all, threads);
    }
}

const char* team_kind() { return openmp().found() ? "OpenMP" : "own"; }

}  // namespace moe_local
