// Publishes one stream of the reference rig with roscpp on an absolute schedule, or only keeps the schedule.
//
// Usage: ros_publisher NAME KIND POOL FRAME_BYTES FRAMES PERIOD_NS PHASE QUEUE FOLDER MODE
//   KIND  jpeg = sensor_msgs/CompressedImage, cloud = sensor_msgs/PointCloud2, else std_msgs/UInt8MultiArray
//   MODE  publish | discard
// Says FOLDER/NAME.ready, waits for FOLDER/go (host ns), leaves FOLDER/NAME.account.json.
#include <time.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <ros/ros.h>
#include <sensor_msgs/CompressedImage.h>
#include <sensor_msgs/PointCloud2.h>
#include <std_msgs/UInt8MultiArray.h>

static int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC_RAW, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

static void sleep_until(int64_t when_ns) {
  int64_t left = when_ns - now_ns();
  if (left <= 0) return;
  timespec t = {time_t(left / 1000000000), long(left % 1000000000)};
  nanosleep(&t, nullptr);
}

static int64_t wait_for_start(const std::string& folder) {
  for (;;) {
    std::ifstream go(folder + "/go");
    int64_t start_ns = 0;
    if (go >> start_ns) return start_ns;
    usleep(20000);
  }
}

typedef std::vector<std::vector<uint8_t>> Pool;

static void fill(sensor_msgs::CompressedImage& message, const std::vector<uint8_t>& data) {
  message.format = "jpeg";
  message.data = data;
}

static void fill(sensor_msgs::PointCloud2& message, const std::vector<uint8_t>& data) {
  const char* names[] = {"x", "y", "z", "intensity"};
  for (int i = 0; i < 4; ++i) {
    sensor_msgs::PointField field;
    field.name = names[i];
    field.offset = 4 * i;
    field.datatype = sensor_msgs::PointField::FLOAT32;
    field.count = 1;
    message.fields.push_back(field);
  }
  message.height = 128;
  message.width = data.size() / 16 / 128;
  message.point_step = 16;
  message.row_step = 16 * message.width;
  message.data = data;
}

static void fill(std_msgs::UInt8MultiArray& message, const std::vector<uint8_t>& data) { message.data = data; }

template <class Message> static void stamp(Message& message) { message.header.stamp = ros::Time::now(); }
static void stamp(std_msgs::UInt8MultiArray&) {}

struct Plan {
  std::string name, folder;
  int64_t frames;
  double period_ns, phase;
  int queue;
  bool is_publishing;
};

template <class Message> static void run(const Plan& plan, const Pool& pool) {
  std::vector<Message> messages(pool.size());  // publishing serialises them, as in any roscpp node
  for (size_t i = 0; i < pool.size(); ++i) fill(messages[i], pool[i]);
  std::unique_ptr<ros::NodeHandle> node;
  ros::Publisher publisher;
  if (plan.is_publishing) {
    node.reset(new ros::NodeHandle);
    publisher = node->advertise<Message>("/" + plan.name, plan.queue);
    while (publisher.getNumSubscribers() == 0) usleep(20000);
  }
  std::ofstream(plan.folder + "/" + plan.name + ".ready").close();
  const int64_t start_ns = wait_for_start(plan.folder);
  for (int64_t i = 0; i < plan.frames; ++i) {
    sleep_until(start_ns + int64_t(std::llround((i + plan.phase) * plan.period_ns)));
    Message& message = messages[i % messages.size()];
    stamp(message);
    if (plan.is_publishing) publisher.publish(message);
  }
  std::ofstream account(plan.folder + "/" + plan.name + ".account.json");
  account << "{\"frames\": " << plan.frames << "}";
  account.close();
  if (plan.is_publishing) {
    std::string last = plan.folder + "/recorded.ready";  // the queue drains until the recorder has stopped
    while (access(last.c_str(), F_OK) != 0) usleep(20000);
  }
}

int main(int argc, char** argv) {
  if (argc != 11) return 2;
  Plan plan = {argv[1], argv[9], atoll(argv[5]), atof(argv[6]), atof(argv[7]), atoi(argv[8]),
               std::string(argv[10]) == "publish"};
  const std::string kind = argv[2];
  const size_t size = atoll(argv[4]);
  std::ifstream file(argv[3], std::ios::binary);
  Pool pool;
  std::vector<uint8_t> data(size);
  while (file.read(reinterpret_cast<char*>(data.data()), size)) pool.push_back(data);
  if (plan.is_publishing) {
    ros::init(argc, argv, "bench_" + plan.name, ros::init_options::NoSigintHandler);
  } else {
    ros::Time::init();
  }
  if (kind == "jpeg")
    run<sensor_msgs::CompressedImage>(plan, pool);
  else if (kind == "cloud")
    run<sensor_msgs::PointCloud2>(plan, pool);
  else
    run<std_msgs::UInt8MultiArray>(plan, pool);
  return 0;
}
