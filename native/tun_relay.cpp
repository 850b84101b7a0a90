// User-space link emulator: packets read from one TUN device come out of its twin later, as over a
// link of a given one-way delay and bandwidth. Used where the kernel has no netem queue.
#include "module.h"

#if defined(__linux__)

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <deque>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <stdexcept>
#include <string>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <tuple>
#include <unistd.h>
#include <vector>

namespace nb = nanobind;

namespace {

// What precedes every packet of a device opened with IFF_VNET_HDR (Virtual I/O Device specification 1.2,
// section 5.1.6); <linux/virtio_net.h> is not C++.
struct OffloadHeader {
    std::uint8_t flags;
    std::uint8_t segmentation; // 0: a single packet
    std::uint16_t headers_length;
    std::uint16_t segment_size;
    std::uint16_t checksum_start;
    std::uint16_t checksum_offset;
};
static_assert(sizeof(OffloadHeader) == 10);

using Nanoseconds = std::int64_t;

// Depth of the token bucket. A direction that is booked further ahead than this is not read, so the
// kernel's own queue holds the sender back and no packet is ever dropped.
constexpr Nanoseconds bucket_depth = 1'000'000;
// A segmentation-offload packet (at most 64 KiB) behind its virtio header.
constexpr std::size_t packet_capacity = sizeof(OffloadHeader) + 65536;
constexpr std::size_t packets_in_turn = 64;

Nanoseconds monotonic_now() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return Nanoseconds{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

[[noreturn]] void fail(const char* what) { throw std::runtime_error(std::string(what) + ": " + std::strerror(errno)); }

struct Packet {
    Nanoseconds release;
    std::vector<char> bytes;
};

// Octets that the packet would occupy on the wire once the interface has cut it into segments.
std::size_t wire_size(const char* packet, std::size_t length) {
    OffloadHeader header;
    std::memcpy(&header, packet, sizeof header);
    const std::size_t body = length - sizeof header;
    const std::size_t headers = header.headers_length;
    if (header.segmentation == 0 || header.segment_size == 0 || headers >= body) return body;
    const std::size_t segments = (body - headers + header.segment_size - 1) / header.segment_size;
    return body + (segments - 1) * headers;
}

class Direction {
  public:
    Direction(int source, int sink, double delay_seconds, double bytes_per_second)
        : source_(source), sink_(sink), delay_(static_cast<Nanoseconds>(delay_seconds * 1e9)),
          nanoseconds_per_byte_(bytes_per_second > 0 ? 1e9 / bytes_per_second : 0.0) {}

    int source() const { return source_; }
    void mark_readable() { readable_ = true; }

    // Takes what the source offers while the token bucket allows it; true if anything was read.
    bool admit(std::vector<char>& buffer) {
        bool any = false;
        for (std::size_t turn = 0; readable_ && turn < packets_in_turn; ++turn) {
            const Nanoseconds now = monotonic_now();
            if (link_free_ > now + bucket_depth) break;
            const ssize_t length = read(source_, buffer.data(), buffer.size());
            if (length < 0) {
                if (errno == EINTR) continue;
                if (errno != EAGAIN) fail("cannot read a packet from the TUN device");
                readable_ = false;
                break;
            }
            if (static_cast<std::size_t>(length) <= sizeof(OffloadHeader)) continue;
            any = true;
            const double size = static_cast<double>(wire_size(buffer.data(), static_cast<std::size_t>(length)));
            link_free_ = std::max(link_free_, now) + static_cast<Nanoseconds>(size * nanoseconds_per_byte_);
            queue_.push_back({link_free_ + delay_, std::vector<char>(buffer.data(), buffer.data() + length)});
        }
        return any;
    }

    void deliver() {
        while (!queue_.empty() && queue_.front().release <= monotonic_now()) {
            const std::vector<char>& bytes = queue_.front().bytes;
            // A full or closing device loses the packet, as a network would; TCP repairs it.
            while (write(sink_, bytes.data(), bytes.size()) < 0 && errno == EINTR) {
            }
            queue_.pop_front();
        }
    }

    // When this direction has to be looked at again without a new packet; 0: never.
    Nanoseconds next_event() const {
        Nanoseconds next = queue_.empty() ? 0 : queue_.front().release;
        if (readable_) {
            const Nanoseconds admission = std::max<Nanoseconds>(link_free_ - bucket_depth, 1);
            next = next == 0 ? admission : std::min(next, admission);
        }
        return next;
    }

  private:
    int source_;
    int sink_;
    Nanoseconds delay_;
    double nanoseconds_per_byte_;
    Nanoseconds link_free_ = 0;
    bool readable_ = true;
    std::deque<Packet> queue_;
};

struct Descriptor {
    int value;
    explicit Descriptor(int opened, const char* what) : value(opened) {
        if (value < 0) fail(what);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() { close(value); }
};

void watch(int epoll, int descriptor, std::uint32_t events, std::uint64_t key) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = key;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) != 0) fail("cannot watch a descriptor");
}

using Link = std::tuple<int, int, double, double>;

void relay_packets(const std::vector<Link>& links, int stop) {
    nb::gil_scoped_release unlocked;
    std::vector<Direction> directions;
    for (const auto& [first, second, delay, rate] : links) {
        directions.emplace_back(first, second, delay, rate);
        directions.emplace_back(second, first, delay, rate);
    }
    const Descriptor epoll(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    const Descriptor timer(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), "timerfd_create");
    const std::uint64_t timer_key = directions.size();
    const std::uint64_t stop_key = timer_key + 1;
    watch(epoll.value, timer.value, EPOLLIN, timer_key);
    watch(epoll.value, stop, EPOLLIN, stop_key);
    for (std::size_t i = 0; i < directions.size(); ++i)
        watch(epoll.value, directions[i].source(), EPOLLIN | EPOLLET, i);

    std::vector<char> buffer(packet_capacity);
    std::vector<epoll_event> events(directions.size() + 2);
    while (true) {
        bool busy = false;
        Nanoseconds next = 0;
        for (Direction& direction : directions) {
            direction.deliver();
            busy = direction.admit(buffer) || busy;
        }
        for (const Direction& direction : directions) {
            const Nanoseconds event = direction.next_event();
            if (event != 0) next = next == 0 ? event : std::min(next, event);
        }
        itimerspec alarm{};
        if (!busy) {
            alarm.it_value.tv_sec = next / 1'000'000'000;
            alarm.it_value.tv_nsec = next % 1'000'000'000;
            timerfd_settime(timer.value, TFD_TIMER_ABSTIME, &alarm, nullptr);
        }
        const int ready = epoll_wait(epoll.value, events.data(), static_cast<int>(events.size()), busy ? 0 : -1);
        for (int i = 0; i < ready; ++i) {
            if (events[i].data.u64 == stop_key) return;
            if (events[i].data.u64 == timer_key) {
                std::uint64_t expirations = 0;
                if (read(timer.value, &expirations, sizeof expirations) < 0 && errno != EAGAIN) fail("timer");
            } else {
                directions[events[i].data.u64].mark_readable();
            }
        }
    }
}

} // namespace

void register_tun_relay(nb::module_& m) {
    m.def("relay_packets", &relay_packets, nb::arg("links"), nb::arg("stop"),
          "Forward packets between pairs of TUN devices (opened with IFF_VNET_HDR, non-blocking) until the "
          "descriptor `stop` becomes readable. A link is (descriptor, descriptor, one-way delay in seconds, "
          "bytes per second; 0: unlimited).");
}

#else

void register_tun_relay(nanobind::module_&) {}

#endif
