// A stand-in for the header of the same name in Gloo, which libtorch contains but does not install.
// c10d names these types and passes them on by pointer; nothing here is ever constructed or called.
#pragma once

namespace gloo::transport {
class Device;
class UnboundBuffer;
} // namespace gloo::transport
