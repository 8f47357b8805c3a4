//! Every known refusal of Azure's, in Azure's words, and its consequence: one row each.
//!
//! The bodies are those of recorded traffic, of Microsoft's documentation and of public issues, with their
//! ids shortened.

use serde_json::{Value, json};

use super::classify::THROTTLED;
use super::consequence::FAILED;
use super::*;

const NIC: &str = "/subscriptions/S/resourceGroups/MC_g/providers/Microsoft.Network/networkInterfaces/n-nic";
const RULE: &str = "OutboundRuleCannotBeUsedWithBackendAddressPoolThatIsReferencedBySecondaryIpConfigs";

/// ARM's words for an assignment that has none of its own.
const POLICY: &str = "Resource 'n-nic' was disallowed by policy. Policy identifiers: '[{\"policyAssignment\":{\"name\":\"One address a NIC\",\
    \"id\":\"/subscriptions/S/providers/Microsoft.Authorization/policyAssignments/5712\"},\"policyDefinition\":{\"name\":\
    \"One address a NIC\",\"id\":\"/subscriptions/S/providers/Microsoft.Authorization/policyDefinitions/one\"}}]'.";

/// The remedy that follows.
#[derive(Debug, PartialEq)]
enum Conduct {
    Retry(Duration),
    ReadAgain,
    /// A condition, an Event, slow retries.
    Wait,
}

use Conduct::{ReadAgain, Retry, Wait};

struct Row {
    what: &'static str,
    /// `None`: an operation that ended so.
    status: Option<u16>,
    retry_after: Option<u64>,
    error: Value,
    reason: &'static str,
    conduct: Conduct,
    /// The words that a person must find in its text, besides the resource.
    names: &'static [&'static str],
}

fn error(code: &str, message: &str) -> Value {
    json!({ "code": code, "message": message })
}

/// The network provider's way: the specific code is in the details.
fn detailed(code: &str, message: &str, detail: &str, words: &str) -> Value {
    json!({ "code": code, "message": message, "details": [{ "code": detail, "message": words }] })
}

fn seconds(count: u64) -> Conduct {
    Retry(Duration::from_secs(count))
}

fn row(
    what: &'static str,
    status: impl Into<Option<u16>>,
    error: Value,
    (reason, conduct): (&'static str, Conduct),
    names: &'static [&'static str],
) -> Row {
    Row { what, status: status.into(), retry_after: None, error, reason, conduct, names }
}

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let retryable = |detail, words| detailed("RetryableError", "A retryable error occurred.", detail, words);
    let mut rows = vec![
        row("etag mismatch", 412,
            detailed("PreconditionFailed", "Precondition failed.", "PreconditionFailedEtagMismatch",
                "Etag provided in if-match header W/\"a\" does not match etag W/\"b\" of resource /subscriptions/S in NRP data store."),
            ("Stale", ReadAgain), &["changed by somebody else"]),
        row("etag mismatch of Compute", 412,
            error("PreconditionFailed", "Etag provided in if-match header \"x\" does not match etag \"1\" of resource."),
            ("Stale", ReadAgain), &["changed by somebody else"]),
        row("another operation holds the resource", 429,
            retryable("RetryableErrorDueToAnotherOperation",
                "Operation PutSubnetOperation (2c1a) is updating resource /subscriptions/S/s. The call can be retried in 14 seconds."),
            ("ResourceBusy", seconds(14)), &["is busy", "is updating resource"]),
        row("a referenced resource is still updating", 429,
            retryable("ReferencedResourceNotProvisioned",
                "Cannot proceed with operation because resource X used by resource Y is not in Succeeded state. Resource is in Updating \
                 state and the last operation that updated/is updating the resource is PutSubnetOperation."),
            ("ResourceBusy", Retry(BUSY)), &["resource X used by resource Y"]),
        row("the network provider throttles one operation", 429,
            retryable("RetryableErrorDueToTooManyCallsToThisOperation",
                "The operation PutNicOperation exceeded throttling limit of 100 calls within last 5 minutes."),
            ("Throttled", Retry(THROTTLED)), &["100 calls within last 5 minutes", "request limits"]),
        Row { retry_after: Some(17), ..row("ARM throttles", 429,
            error("SubscriptionRequestsThrottled", "Number of write requests for subscription 'S' exceeded the limit."),
            ("Throttled", seconds(17)), &["Number of write requests", "request limits"]) },
        Row { retry_after: Some(5), ..row("ARM throttles, under its other code", 429,
            error("TooManyRequests", "The request is being throttled."),
            ("Throttled", seconds(5)), &["is being throttled"]) },
        row("Compute throttles", 429,
            json!({ "code": "OperationNotAllowed", "message": "The server rejected the request because too many requests have been received for this subscription.",
                "details": [{ "code": "TooManyRequests", "target": "HighCostGetVMScaleSet3Min",
                    "message": "{\"operationGroup\":\"HighCostGetVMScaleSet3Min\",\"startTime\":\"2022-10-01\",\"allowedRequestCount\":720}" }] }),
            ("Throttled", Retry(THROTTLED)), &["HighCostGetVMScaleSet3Min"]),
        row("another operation on the virtual network", 409,
            error("AnotherOperationInProgress", "Another operation on this or dependent resource is in progress."),
            ("ResourceBusy", Retry(BUSY)), &["Another operation"]),
        row("a concurrent write to Compute", 409,
            error("Conflict", "The request failed due to conflict with a concurrent request."),
            ("ResourceConflict", Retry(BUSY)), &["concurrent request", "ever less often"]),
        row("a VM operation replaced by a newer one", None,
            error("OperationPreempted", "Operation execution has been preempted by a more recent operation."),
            ("Superseded", ReadAgain), &["preempted", "what else writes"]),
        row("a NIC operation superseded by a newer one", None,
            detailed("Canceled", "Operation was canceled.", "CanceledAndSupersededDueToAnotherOperation",
                "Operation PutNicOperation (a) was canceled and superseded by operation PutNicOperation (b)."),
            ("Superseded", ReadAgain), &["superseded by operation", "what else writes"]),
        row("an operation that failed", None,
            error("NetworkingInternalOperationError", "An unexpected error occurred."),
            ("OperationFailed", Retry(FAILED)), &["NetworkingInternalOperationError", "writes it again"]),
        row("subnet exhausted", 400,
            error("SubnetIsFull", "Subnet nodes with address prefix 10.240.0.0/28 does not have enough capacity for 5 IP addresses."),
            ("SubnetFull", Wait), &["nodes (10.240.0.0/28)", "for 5 IP addresses", "Free up addresses in it, lower minimum"]),
        row("subnet exhausted, found out by the operation", None,
            error("SubnetIsFull", "Subnet nodes with address prefix 10.240.0.0/28 does not have enough capacity for 5 IP addresses."),
            ("SubnetFull", Wait), &["nodes (10.240.0.0/28)"]),
        row("a static address taken", 400,
            error("PrivateIPAddressIsAllocated", "IP configuration /subscriptions/S/vnp-1 is using the private IP address 10.240.0.9 which \
                is already allocated to resource /subscriptions/S/other."),
            ("AddressTaken", ReadAgain), &["10.240.0.9", "/subscriptions/S/other"]),
        row("a static address outside the subnet", 400,
            error("PrivateIPAddressNotInSubnet", "Private static IP address 10.9.0.1 does not belong to the range of subnet prefix 10.240.0.0/20."),
            ("AddressTaken", ReadAgain), &["10.9.0.1"]),
        row("a static address that Azure keeps", 400,
            error("PrivateIPAddressInReservedRange", "Private static IP address 10.240.0.1 falls within reserved IP range of subnet prefix 10.240.0.0/20."),
            ("AddressTaken", ReadAgain), &["10.240.0.1"]),
        row("a static address that another NIC has, under the other code", 400,
            error("PrivateIPAddressInUse", "Private IP address 10.240.0.9 is already in use."),
            ("AddressTaken", ReadAgain), &["10.240.0.9"]),
        row("a static address that has just been taken off another NIC", 400,
            error("PrivateIPAddressIsBeingCleanedUp", "Private static IP address 10.240.0.9 is being cleaned up and cannot be used now."),
            ("AddressBeingFreed", seconds(5)), &["10.240.0.9", "goes on without it"]),
        row("an operation that another has overtaken", None,
            error("AnotherOperationInProgress", "Another operation on this or dependent resource is in progress."),
            ("ResourceBusy", Retry(BUSY)), &["Another operation"]),
        row("a referenced resource that has failed", 400,
            error("ReferencedResourceNotProvisioned", "Cannot proceed with operation because resource X used by resource Y is not in Succeeded \
                state. Resource is in Failed state."),
            ("ResourceBusy", Retry(BUSY)), &["resource X used by resource Y"]),
        row("a provider that isn't registered", 409,
            error("MissingSubscriptionRegistration", "The subscription is not registered to use namespace 'Microsoft.Network'."),
            ("SubscriptionUnusable", Wait), &["az provider register --namespace Microsoft.Network"]),
        row("a disabled subscription", 409,
            error("ReadOnlyDisabledSubscription", "The subscription 'S' is disabled and therefore marked as read only."),
            ("SubscriptionUnusable", Wait), &["have it enabled again"]),
        row("a property of a scale set's instance that can't be changed", 409,
            json!({ "code": "PropertyChangeNotAllowed", "message": "Changing property 'osDisk.name' is not allowed.", "target": "osDisk.name" }),
            ("AzureRefused", Wait), &["osDisk.name", "Change what it objects to"]),
        row("a conflict of an unknown kind", 409,
            error("Novel", "It can't be done now."),
            ("ResourceConflict", Retry(BUSY)), &["Novel", "ever less often"]),
        row("a conflict of an unknown kind, under the code of all conflicts", 409,
            detailed("Conflict", "The request conflicts with the resource's state.", "Novel", "It can't be done now."),
            ("ResourceConflict", Retry(BUSY)), &["Novel", "can't be done now"]),
        Row { retry_after: Some(778), ..row("a limit of one action", 429,
            error("ResourceRequestsThrottled", "Number of requests for action 'Microsoft.Network/virtualNetworks/read' exceeded the limit of '2000'."),
            ("Throttled", seconds(778)), &["virtualNetworks/read"]) },
        row("a limit of one action, met by an operation", None,
            error("ResourceRequestsThrottled", "Number of requests for action 'Microsoft.Network/virtualNetworks/read' exceeded the limit of '2000'."),
            ("Throttled", Retry(THROTTLED)), &["exceeded the limit"]),
        row("too many calls, met by an operation", None,
            retryable("RetryableErrorDueToTooManyCallsToThisOperation", "The call can be retried in 14 seconds."),
            ("Throttled", seconds(14)), &["request limits"]),
        row("a limit whose end is now", 429,
            error("SubscriptionRequestsThrottled", "The request limit is reached. Please try again after '0' seconds."),
            ("Throttled", Retry(THROTTLED)), &["The request limit is reached"]),
        row("a scale set's instance with too many ipConfigurations", 400,
            error("SecondaryIpConfigurationCountPerVMSSVMExceeded", "At most 256."),
            ("QuotaExceeded", Wait), &["256"]),
        row("a second load balancer of a type", 400,
            error("NetworkInterfaceUsesMultipleLoadBalancersOfSameType", "NIC uses load balancers A and B."),
            ("NotAttachable", Wait), &["give the pods a backend pool of that one"]),
        row("static without an address", 400,
            error("PrivateIPAddressMissing", "Private IP address is required when privateIPAllocationMethod is Static in IP configuration /subscriptions/S/vnp-1."),
            ("AzureRefused", Wait), &["PrivateIPAddressMissing"]),
        row("the primary removed or renamed", 400,
            error("IpConfigDeleteNotSupported", "IP Configuration ipconfig1 cannot be deleted. Deletion and renaming of primary IP Configuration is not supported"),
            ("AzureRefused", Wait), &["IpConfigDeleteNotSupported", "ipconfig1"]),
        row("a secondary in a pool with an outbound rule", 400,
            error(RULE, "OutboundRule /subscriptions/S/r cannot be used with Backend Address Pool /subscriptions/S/p that contains Secondary IPConfig."),
            ("NotAttachable", Wait), &["give the pods a backend pool without one", "Secondary IPConfig"]),
        row("a public address's name is taken", 400,
            error("DnsRecordInUse", "DNS record shop.westeurope.cloudapp.azure.com is already used by another public IP."),
            ("NotAttachable", Wait), &["choose another vnetpool.io/dns-label", "shop.westeurope"]),
        row("the public addresses of a region are used up", 400,
            error("PublicIPCountLimitReached", "Cannot create more than 20 public IP addresses for this subscription in this region."),
            ("NotAttachable", Wait), &["Have the quota raised", "more than 20"]),
        row("a public address that another NIC has", 400,
            error("PublicIPAddressCannotBeDeleted", "Public IP address /subscriptions/S/p can not be deleted since it is still allocated \
                to resource /subscriptions/S/other."),
            ("AzureRefused", Wait), &["/subscriptions/S/other", "vnetpool.io/gone=true"]),
        row("what is to be attached isn't there", 400,
            error("InvalidResourceReference", "Resource /subscriptions/S/p referenced by resource /subscriptions/S/c was not found."),
            ("NotAttachable", Wait), &["correct the id in the NodeIPPool's attachments", "/subscriptions/S/p"]),
        row("the VM is being deleted", None,
            error("OperationNotAllowed", "Operation 'startTenantUpdate' is not allowed on VM 'x' since the VM is marked for deletion. You can only retry the Delete operation."),
            ("ResourceBusy", Retry(BUSY)), &["marked for deletion"]),
        row("not found, by the gateway", 404,
            error("ResourceNotFound", "The Resource 'Microsoft.Network/networkInterfaces/n-nic' under resource group 'MC_g' was not found."),
            ("ResourceNotFound", Wait), &["Delete the Node", "was not found"]),
        row("the resource group is not found", 404,
            error("ResourceGroupNotFound", "Resource group 'MC_g' could not be found."),
            ("ScopeMissing", Wait), &["'MC_g' could not be found", "resource group", "vnetpool.io/gone=true"]),
        row("the subscription is not found", 404,
            error("SubscriptionNotFound", "The subscription 'S' could not be found."),
            ("ScopeMissing", Wait), &["'S' could not be found", "vnetpool.io/gone=true"]),
        row("the parent is not found", 404,
            error("ParentResourceNotFound", "Can not perform requested operation on nested resource."),
            ("ResourceNotFound", Wait), &["nested resource"]),
        row("not found, by the provider", 404,
            json!({ "code": "NotFound", "message": "Resource /subscriptions/S/nic not found.", "details": [] }),
            ("ResourceNotFound", Wait), &["Delete the Node"]),
        row("a scale set's instance that is gone", 400,
            json!({ "code": "InvalidParameter", "message": "The provided instanceId 7 is not an active Virtual Machine Scale Set VM instanceId.", "target": "instanceId" }),
            ("ResourceNotFound", Wait), &["instanceId 7"]),
        row("a write to a scale set's own NIC", 400,
            error("OperationNotAllowed", "The operation 'write' on resource type 'virtualMachineScaleSets/virtualMachines/networkInterfaces' is disallowed."),
            ("AzureRefused", Wait), &["is disallowed", "Change what it objects to"]),
        row("too many ipConfigurations, whatever the code", 400,
            error("NetworkInterfaceCannotHaveMoreIpConfigurations", "At most 256 IP configurations are allowed."),
            ("AzureRefused", Wait), &["256"]),
        row("a missing permission", 403,
            error("AuthorizationFailed", "The client 'c' with object id 'o' does not have authorization to perform action \
                'Microsoft.Network/networkInterfaces/write' over scope '/subscriptions/S/resourceGroups/MC_g/nic' or the scope is invalid."),
            ("PermissionDenied", Wait), &["Microsoft.Network/networkInterfaces/write", "/subscriptions/S/resourceGroups/MC_g/nic", "Grant its role"]),
        row("a missing permission on something linked", 403,
            error("LinkedAuthorizationFailed", "The client 'c' with object id 'o' has permission to perform action \
                'Microsoft.Network/networkInterfaces/write' on scope '/subscriptions/S/nic'; however, it does not have permission to \
                perform action(s) 'Microsoft.Network/virtualNetworks/subnets/join/action' on the linked scope(s) '/subscriptions/S/subnet' \
                (respectively) or the linked scope(s) are invalid."),
            ("PermissionDenied", Wait), &["do Microsoft.Network/virtualNetworks/subnets/join/action on /subscriptions/S/subnet", "Grant its role"]),
        row("a lock", 409,
            error("ScopeLocked", "The scope '/subscriptions/S/nic' cannot perform write operation because following scope(s) are locked: \
                '/subscriptions/S/resourceGroups/MC_g'. Please remove the lock and try again."),
            ("ResourceLocked", Wait), &["Remove the lock on /subscriptions/S/resourceGroups/MC_g"]),
        row("a policy", 403,
            error("RequestDisallowedByPolicy", POLICY),
            ("PolicyForbidden", Wait), &["an Azure Policy (/subscriptions/S/providers/Microsoft.Authorization/policyAssignments/5712)",
                "Exempt it, or change the policy"]),
        row("a policy with words of its own", 403,
            json!({ "code": "RequestDisallowedByPolicy", "target": "n-nic",
                "message": "Resource 'n-nic' was disallowed by policy. Reasons: 'One address a NIC.'. See error details for policy resource IDs.",
                "additionalInfo": [{ "type": "PolicyViolation", "info": { "policyDefinitionEffect": "Deny",
                    "policyAssignmentId": "/providers/Microsoft.Management/managementGroups/m/providers/Microsoft.Authorization/policyAssignments/one" } }] }),
            ("PolicyForbidden", Wait), &["managementGroups/m/providers/Microsoft.Authorization/policyAssignments/one", "One address a NIC."]),
        row("an API version that the cloud doesn't have", 400,
            error("NoRegisteredProviderFound", "No registered resource provider found for location 'usgovvirginia' and API version \
                '2025-05-01' for type 'networkInterfaces'. The supported api-versions are '2024-03-01, 2023-11-01'."),
            ("ConfigurationUnusable", Wait), &["networkAPIVersion", "2024-03-01, 2023-11-01"]),
        row("a full virtual network", 400,
            error("PrivateIPAddressLimitReached", "Cannot create more than 65536 private IP addresses for this virtual network."),
            ("VirtualNetworkFull", Wait), &["65536", "a block of 16 counts once"]),
        row("a server error", 500, error("InternalServerError", "An error occurred."), ("OutcomeUnknown", ReadAgain), &["reads it again"]),
        row("a gateway that gives up", 504, error("GatewayTimeout", "The gateway did not receive a response."), ("OutcomeUnknown", ReadAgain), &["reads it again"]),
    ];
    // Seen with either status.
    rows.extend([400, 409].map(|status| row("a scale set's VM is being deleted", status,
        error("OperationNotAllowed", "The operation 'Put on Virtual Machine Scale Set VM Instance' is not allowed on Virtual Machine Scale Set 'v' since it is marked for deletion."),
        ("ResourceBusy", Retry(BUSY)), &["marked for deletion"])));
    rows
}

#[test]
fn every_refusal_of_azures_has_its_reason_its_remedy_and_its_words() {
    for Row { what, status, retry_after, error, reason, conduct, names } in rows() {
        let body = json!({ "error": error }).to_string();
        let wait = retry_after.map(Duration::from_secs);
        let error = classify(status, &ArmError::of_body(body.as_bytes()), wait, NIC, Effect::Write);
        let text = error.to_string();
        assert_eq!(error.reason(), reason, "{what}: {text}");
        let does = match error.remedy() {
            Remedy::RetryAfter(wait) => Retry(wait),
            Remedy::ReadAgain => ReadAgain,
            Remedy::WaitForChange { reason: found, retry } => {
                assert_eq!(found, reason, "{what}");
                assert!(retry >= Duration::from_secs(60), "{what}: tried again after {retry:?}");
                Wait
            }
        };
        assert_eq!(does, conduct, "{what}: {text}");
        for name in names {
            assert!(text.contains(name), "{what}: nothing of {name:?} in {text:?}");
        }
        // A missing permission may be on another resource than the written one, and is named instead.
        assert!(text.contains(NIC) || reason == "PermissionDenied", "{what}: which NIC? {text}");
        // Where a person has to act, no sentence is lost to the 1 KiB that an Event takes.
        assert!(conduct != Wait || text.len() < 1000, "{what}: {} bytes", text.len());
        // A refused request has changed nothing; a lost one may have.
        let refused =
            status.is_some_and(|status| (400..500).contains(&status) && ![404, 412].contains(&status));
        if refused && !["ResourceNotFound", "ScopeMissing"].contains(&reason) {
            assert!(error.left_all_as_it_was(), "{what}");
        }
    }
}
