# The checks of checks_test.go with the AWS SDK for Ruby. Prints one line of
# JSON per check; see runScript in main_test.go. Credentials and the trusted
# certificate are in the environment. The only argument is the manifest.

require "aws-sdk-s3"
require "digest"
require "json"
require "net/http"
require "securerandom"
require "stringio"

M = JSON.parse(File.read(ARGV[0]))
BUCKET = M["bucket"]
SMALL = M["small_text"].b
S3 = Aws::S3

def client(**more)
  S3::Client.new(endpoint: M["endpoint"], region: M["region"], force_path_style: true, **more)
end

$s3 = client

# Check collects failures, so that one does not hide the next.
class Check
  attr_reader :failures

  def initialize
    @failures = []
  end

  def same(what, got, want)
    return if got == want
    difference = want.is_a?(String) && want.bytesize > 500 ? "#{got&.bytesize} bytes, not #{want.bytesize}, or others" : "#{got.inspect}, not #{want.inspect}"
    @failures << "#{what}: #{difference}"[0, 600]
  end

  def refused(what, status, names)
    yield
    @failures << "#{what}: was not refused"
  rescue Seahorse::Client::NetworkingError => e
    @failures << "#{what}: #{e.message}"
  rescue Aws::Errors::ServiceError => e
    got = [e.context.http_response.status_code, e.class.name.split("::").last]
    @failures << "#{what}: #{got}, not #{status} #{names}: #{e.message}" unless got[0] == status && names.include?(got[1])
  end
end

def data(body) = File.binread(body["file"])
def body(name) = M["bodies"].find { |b| b["name"] == name }
def put(key, content, **more) = $s3.put_object(bucket: BUCKET, key: key, body: content, **more)
def read(key, **more) = $s3.get_object(bucket: BUCKET, key: key, **more)
def get(key, **more) = read(key, **more).body.read.b
def head(key) = $s3.head_object(bucket: BUCKET, key: key)
def object(key) = S3::Object.new(BUCKET, key, client: $s3)
def sizes_of(objects) = objects.to_h { |o| [o.key, o.size] }

def bucket(c)
  $s3.create_bucket(bucket: BUCKET, create_bucket_configuration: { location_constraint: M["region"] })
  $s3.head_bucket(bucket: BUCKET)
  c.same("in the list of buckets", $s3.list_buckets.buckets.map(&:name).include?(BUCKET), true)
  c.same("objects in a new bucket", $s3.list_objects_v2(bucket: BUCKET).key_count, 0)
  c.refused("listing no bucket", 404, ["NoSuchBucket"]) { $s3.list_objects_v2(bucket: BUCKET + "-none") }
end

def round_trip(c)
  M["bodies"].each do |b|
    key = "bodies/" + b["name"]
    File.open(b["file"], "rb") { |f| put(key, f) }
    c.same(b["name"], get(key), data(b))
    chunks = String.new
    $s3.get_object(bucket: BUCKET, key: key) { |chunk| chunks << chunk }
    c.same(b["name"] + " in chunks", chunks.b, data(b))
  end
  # Programs that pass on credentials from a form or a file often have an
  # empty session token. The SDK signs it.
  without = client(credentials: Aws::Credentials.new(ENV["AWS_ACCESS_KEY_ID"], ENV["AWS_SECRET_ACCESS_KEY"], ""))
  return unless M["proxied"] # a store may refuse it
  without.put_object(bucket: BUCKET, key: "empty-token", body: SMALL)
  c.same("with an empty session token", without.get_object(bucket: BUCKET, key: "empty-token").body.read.b, SMALL)
end

def sizes(c)
  want = M["bodies"].to_h { |b| ["bodies/" + b["name"], b["size"]] }
  listed = $s3.list_objects_v2(bucket: BUCKET, prefix: "bodies/").contents
  c.same("listed", sizes_of(listed), want)
  listed.each do |o|
    answer = head(o.key)
    c.same("HEAD of " + o.key, [answer.content_length, answer.etag], [want[o.key], o.etag])
  end
end

def ranges(c)
  want, key = data(body("random-1048576")), "bodies/random-1048576"
  {
    "0-0" => want[0, 1], "65495-65496" => want[65495..65496], "65400-131100" => want[65400..131100], "1048575-1048575" => want[1048575..],
    "1048000-" => want[1048000..], "-1" => want[-1..], "-70000" => want[-70000..], "1048000-9999999" => want[1048000..], "-9999999" => want,
  }.each do |spec, part|
    answer = read(key, range: "bytes=" + spec)
    c.same(spec, answer.body.read.b, part)
    c.same(spec + ", Content-Range ends in", answer.content_range.split("/")[1], want.bytesize.to_s)
  end
  ["1048576-", "2000000-3000000"].each do |spec|
    c.refused(spec, 416, ["InvalidRange"]) { read(key, range: "bytes=" + spec) }
  end
end

def listing(c)
  everything, prefixes = {}, []
  23.times do |i|
    key = format("list/file-%02d", i)
    if i % 3 != 0
      prefixes << format("list/dir-%02d/", i)
      key = prefixes.last + "file"
    end
    everything[key] = i
    put(key, SMALL[0, i])
  end
  [:list_objects_v2, :list_objects].each do |name|
    pages = $s3.public_send(name, bucket: BUCKET, prefix: "list/", max_keys: 7).to_a
    c.same("#{name}, pages", pages.size, 4)
    c.same(name.to_s, sizes_of(pages.flat_map(&:contents)), everything)
    found = $s3.public_send(name, bucket: BUCKET, prefix: "list/", delimiter: "/", max_keys: 7).flat_map(&:common_prefixes).map(&:prefix)
    c.same("#{name}, prefixes", found, prefixes)
  end
end

def odd_keys(c)
  M["keys"].each do |key|
    content = SMALL + key.b
    put(key, content)
    c.same(key, get(key), content)
  end
  listed = sizes_of($s3.list_objects_v2(bucket: BUCKET, prefix: "odd/").contents)
  c.same("listed", listed, M["keys"].to_h { |key| [key, SMALL.bytesize + key.bytesize] })
end

# fetch sends a request to a URL as a program without an SDK does.
def fetch(c, what, url, status, method: "GET", content: nil, want: nil, headers: {})
  uri = URI(url)
  answer = Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == "https", ca_file: ENV["AWS_CA_BUNDLE"]) do |http|
    http.send_request(method, uri.request_uri, content, headers)
  end
  c.same("#{what}: #{answer.body&.slice(0, 300)}", answer.code.to_i, status)
  c.same(what, answer.body.b, want) if want && answer.code.to_i == status
end

def presigned(c)
  signer, b = S3::Presigner.new(client: $s3), body("random-65497")
  key = "bodies/" + b["name"]
  link = signer.presigned_url(:get_object, bucket: BUCKET, key: key, expires_in: 3600)
  fetch(c, "GET", link, 200, want: data(b))
  fetch(c, "HEAD", signer.presigned_url(:head_object, bucket: BUCKET, key: key), 200, method: "HEAD")
  fetch(c, "another signature", link.sub(/Signature=(.)/) { "Signature=" + ($1 == "0" ? "1" : "0") }, 403)
  fetch(c, "another key", link.sub("-65497", "-65496"), 403)
  fetch(c, "another method", link, 403, method: "DELETE")
  fetch(c, "PUT", signer.presigned_url(:put_object, bucket: BUCKET, key: "presigned"), 200, method: "PUT", content: data(b))
  c.same("stored by URL", get("presigned"), data(b))
  url, headers = signer.presigned_request(:put_object, bucket: BUCKET, key: "presigned-type", content_type: "text/x-e2e", metadata: { "color" => "blue" })
  fetch(c, "PUT with headers", url, 200, method: "PUT", content: SMALL, headers: headers.merge("Content-Type" => "text/x-e2e"))
  c.same("its metadata", head("presigned-type").metadata, { "color" => "blue" })
  post_form(c)
  brief = signer.presigned_url(:get_object, bucket: BUCKET, key: key, expires_in: 1)
  sleep 2.5
  fetch(c, "expired", brief, 403)
end

# post_form uploads with the form fields of PresignedPost.
def post_form(c)
  post = S3::Bucket.new(BUCKET, client: $s3).presigned_post(key: "form", success_action_status: "201")
  uri = URI(M["endpoint"] + "/" + BUCKET)
  request = Net::HTTP::Post.new(uri)
  request.set_form(post.fields.to_a + [["file", StringIO.new(SMALL), { filename: "small.txt" }]], "multipart/form-data")
  answer = Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == "https", ca_file: ENV["AWS_CA_BUNDLE"]) { |http| http.request(request) }
  c.same("a form: #{answer.body&.slice(0, 300)}", answer.code, "201")
  c.same("stored by a form", get("form"), SMALL)
end

def metadata(c)
  want = {
    content_type: "text/x-e2e", cache_control: "max-age=60, private", content_disposition: 'attachment; filename="a b.txt"',
    content_encoding: "gzip", content_language: "de-AT", metadata: { "color" => "dark blue", "shape-of-it" => "a=b;c" },
  }
  put("metadata", SMALL, **want)
  answer = head("metadata")
  want.each { |name, value| c.same("HEAD, #{name}", answer[name], value) }
end

SUMS = {
  "CRC32" => ->(d) { [[Zlib.crc32(d)].pack("N")].pack("m0") },
  "SHA1" => ->(d) { Digest::SHA1.base64digest(d) },
  "SHA256" => ->(d) { Digest::SHA256.base64digest(d) },
}.freeze

# checksums leaves out CRC32C, for which the SDK needs a native library.
def checksums(c)
  ["random-0", "random-65497", "random-1048576"].each do |name|
    content = data(body(name))
    SUMS.each do |algorithm, sum|
      key = "checksums/#{algorithm}-#{name}"
      File.open(body(name)["file"], "rb") { |f| put(key, f, checksum_algorithm: algorithm) }
      answer = read(key, checksum_mode: "ENABLED")
      c.same("#{algorithm} of #{name}", answer.body.read.b, content)
      c.same("#{algorithm} of #{name}, given", answer["checksum_#{algorithm.downcase}"], sum.call(content))
    end
  end
  SUMS.each do |algorithm, sum|
    key = "checksums/wrong-" + algorithm
    c.refused("a wrong " + algorithm, 400, ["BadDigest"]) { put(key, SMALL, "checksum_#{algorithm.downcase}": sum.call("something else")) }
    c.refused("after a wrong " + algorithm, 404, ["NotFound"]) { head(key) }
  end
end

def content_md5(c)
  content = data(body("random-65497"))
  put("md5", content, content_md5: Digest::MD5.base64digest(content))
  ["md5", "md5-new"].each do |key|
    c.refused("a wrong Content-MD5", 400, ["BadDigest"]) { put(key, SMALL, content_md5: Digest::MD5.base64digest("something else")) }
  end
  c.refused("after that", 404, ["NotFound"]) { head("md5-new") }
  c.same("what a refused PUT would have replaced", get("md5"), content)
end

def conditions(c)
  etag, other = put("conditions", SMALL).etag, '"0123456789abcdef0123456789abcdef"'
  c.same("If-Match", get("conditions", if_match: etag), SMALL)
  c.same("If-None-Match", get("conditions", if_none_match: other), SMALL)
  c.refused("If-None-Match", 304, ["NotModified"]) { get("conditions", if_none_match: etag) }
  c.refused("If-Match", 412, ["PreconditionFailed"]) { get("conditions", if_match: other) }
end

# multipart uploads a stream of unknown length, and a file, with the SDK's
# default part sizes.
def multipart(c)
  want = data(M["large"])
  object("large").upload_stream { |stream| File.open(M["large"]["file"], "rb") { |f| IO.copy_stream(f, stream) } }
  answer = head("large")
  c.same("size", answer.content_length, want.bytesize)
  c.same("parts in the ETag", answer.etag.split("-")[1], '4"')
  c.same("large", get("large"), want)
  object("large-file").upload_file(M["large"]["file"], multipart_threshold: 5 << 20)
  back = File.join(Dir.tmpdir, "ruby-#{BUCKET}-#{SecureRandom.hex(8)}")
  object("large-file").download_file(back)
  c.same("large, as a file", File.binread(back), want)
  File.delete(back)
end

def copy(c)
  { "bodies/random-65497" => data(body("random-65497")), "large" => data(M["large"]) }.each do |key, want|
    object("copies/" + key).copy_from("#{BUCKET}/#{key}")
    c.same("copy of " + key, get("copies/" + key), want)
  end
  object("copies/in parts").copy_from("#{BUCKET}/large", multipart_copy: true, content_length: M["large"]["size"])
  c.same("copy in parts", get("copies/in parts"), data(M["large"]))
  object("copies/in parts").move_to("#{BUCKET}/copies/moved + away")
  c.same("moved", get("copies/moved + away"), data(M["large"]))
  c.refused("what was moved", 404, ["NotFound"]) { head("copies/in parts") }
end

def tags(c)
  key, set = "bodies/random-1", [{ key: "project", value: "e2e" }, { key: "state", value: "a+b = c/d" }]
  $s3.put_object_tagging(bucket: BUCKET, key: key, tagging: { tag_set: set })
  got = $s3.get_object_tagging(bucket: BUCKET, key: key).tag_set.map(&:to_h)
  c.same("tags", got.sort_by { |t| t[:key] }, set)
  $s3.delete_object_tagging(bucket: BUCKET, key: key)
  c.same("after delete_object_tagging", $s3.get_object_tagging(bucket: BUCKET, key: key).tag_set.to_a, [])
end

def remove(c)
  keys = (0..4).map { |i| "delete/#{i}+ü&<x>" }
  keys.each { |key| put(key, SMALL) }
  $s3.delete_object(bucket: BUCKET, key: keys[0])
  c.refused("GET", 404, ["NoSuchKey"]) { get(keys[0]) }
  S3::Bucket.new(BUCKET, client: $s3).objects(prefix: "delete/").batch_delete!
  c.same("left", $s3.list_objects_v2(bucket: BUCKET, prefix: "delete/").key_count, 0)
  c.refused("bucket that is not empty", 409, ["BucketNotEmpty"]) { $s3.delete_bucket(bucket: BUCKET) }
end

def credentials(c)
  key, secret = ENV["AWS_ACCESS_KEY_ID"], ENV["AWS_SECRET_ACCESS_KEY"]
  strangers = { "SignatureDoesNotMatch" => [key, SecureRandom.hex(20)] }
  strangers["InvalidAccessKeyId"] = ["AKUNKNOWN" + SecureRandom.hex(5), secret] if M["proxied"] # the store itself answers 404
  strangers.each do |code, who|
    stranger = client(credentials: Aws::Credentials.new(*who))
    c.refused("list", 403, [code]) { stranger.list_objects_v2(bucket: BUCKET) }
    c.refused("GET", 403, [code]) { stranger.get_object(bucket: BUCKET, key: "bodies/random-1") }
    c.refused("PUT", 403, [code]) { stranger.put_object(bucket: BUCKET, key: "stranger", body: SMALL) }
  end
  c.refused("what a stranger stored", 404, ["NotFound"]) { head("stranger") }
end

$stdout.sync = true
{
  "bucket" => :bucket, "round trip" => :round_trip, "sizes" => :sizes, "ranges" => :ranges, "listing" => :listing, "odd keys" => :odd_keys,
  "presigned" => :presigned, "metadata" => :metadata, "checksums" => :checksums, "content-md5" => :content_md5, "conditions" => :conditions,
  "multipart" => :multipart, "copy" => :copy, "tags" => :tags, "delete" => :remove, "credentials" => :credentials,
}.each do |check, run|
  c = Check.new
  begin
    send(run, c)
  rescue StandardError => e
    c.failures << "#{e.class}: #{e.message} at #{e.backtrace.first(3)}"[0, 800]
  end
  puts JSON.generate(check: check, status: c.failures.empty? ? "ok" : "fail", detail: c.failures.join("\n"))
end
